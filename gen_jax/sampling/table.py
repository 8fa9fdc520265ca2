"""Every solver and corrector, one row each: what it claims, for the conformance tests, docs and error messages.

The names are those of the functions that `gen_jax.sampling` exports; adding a sampler is writing the function and
its row.
"""

from typing import NamedTuple

__all__ = ['Row', 'SAMPLERS']


class Row(NamedTuple):
    """What a sampler claims of itself."""

    order: int | None
    """Order of convergence to the probability-flow ODE, primed history granted; None if stochastic."""
    calls: float
    """Calls of the denoiser per step, away from the ends."""
    stochastic: bool
    reference: str
    """Paper and equation or algorithm."""
    parity: str = ''
    """Name of the reference implementation with which golden parity is tested, or empty."""
    kind: str = 'solver'
    """'solver': from level to level; 'corrector': stays on its level (for `chain`); 'editing': works on something
    given (a picture, a classifier's gradient) or walks towards noise."""


SAMPLERS = {
    'ddpm': Row(None, 1, True, 'Ho et al. 2020, Algorithm 2', 'diffusers.DDPMScheduler'),
    'ddim': Row(1, 1, False, 'Song et al. 2021, Eq. 12 (eta > 0: stochastic)', 'diffusers.DDIMScheduler'),
    'euler': Row(1, 1, False, 'Karras et al. 2022, Eq. 3', 'diffusers.EulerDiscreteScheduler'),
    'heun': Row(2, 2, False, 'Karras et al. 2022, Algorithm 1', 'diffusers.HeunDiscreteScheduler'),
    'classifier_shift': Row(None, 1, True, 'Dhariwal & Nichol 2021, Algorithm 1', kind='editing'),
    'replace_known': Row(None, 0, True, 'Song et al. 2021, Appendix I.2', kind='editing'),
    'repaint': Row(None, 1, True, 'Lugmayr et al. 2022, Algorithm 1', 'diffusers.RePaintScheduler', 'editing'),
    'ddim_inverse': Row(1, 1, False, 'Song et al. 2021, Sec. 4.3', 'diffusers.DDIMInverseScheduler', 'editing'),
    'dpm2': Row(2, 2, False, 'Karras et al. 2022, as k-diffusion; Lu et al. 2022a, Algorithm 1',
                'diffusers.KDPM2DiscreteScheduler'),
    'dpmpp_2s': Row(2, 2, False, 'Lu et al. 2022b, Algorithm 1'),
    'dpm_solver_3': Row(3, 3, False, 'Lu et al. 2022a, Algorithm 2'),
    'dpm_solver_singlestep': Row(2, 2, False, 'Lu et al. 2022a, Algorithms 1-2; Lu et al. 2022b, Algorithm 1'),
    'dpm_solver_interleaved': Row(2, 1, False, 'Lu et al. 2022a, rows of the grid as intermediate levels',
                                  'diffusers.DPMSolverSinglestepScheduler'),
    'lms': Row(4, 1, False, 'k-diffusion, sample_lms', 'diffusers.LMSDiscreteScheduler'),
    'pndm': Row(2, 1, False, 'Liu et al. 2022, Algorithm 2', 'diffusers.PNDMScheduler'),
    'plms': Row(2, 1, False, 'Liu et al. 2022, as latent diffusion', 'diffusers.PNDMScheduler'),
    'ipndm': Row(2, 1, False, 'Zhang & Chen 2023', 'diffusers.IPNDMScheduler'),
    'deis': Row(3, 1, False, 'Zhang & Chen 2023, log-rho multistep', 'diffusers.DEISMultistepScheduler'),
    'dpm_solver_multistep': Row(2, 1, False, 'Lu et al. 2022a; Lu et al. 2022b',
                                'diffusers.DPMSolverMultistepScheduler'),
    'dpmpp_2m': Row(2, 1, False, 'Lu et al. 2022b, Algorithm 2', 'diffusers.DPMSolverMultistepScheduler'),
    'dpmpp_3m': Row(3, 1, False, 'Lu et al. 2022b, Sec. 4', 'diffusers.DPMSolverMultistepScheduler'),
    'dpmpp_2m_sde': Row(None, 1, True, 'Lu et al. 2022b, SDE 2M', 'diffusers.DPMSolverMultistepScheduler'),
    'unipc': Row(2, 1, False, 'Zhao et al. 2023, Algorithms 1-2', 'diffusers.UniPCMultistepScheduler'),
    'euler_ancestral': Row(None, 1, True, 'k-diffusion, sample_euler_ancestral',
                           'diffusers.EulerAncestralDiscreteScheduler'),
    'dpm2_ancestral': Row(None, 2, True, 'k-diffusion, sample_dpm_2_ancestral',
                          'diffusers.KDPM2AncestralDiscreteScheduler'),
    'dpmpp_2s_ancestral': Row(None, 2, True, 'k-diffusion, sample_dpmpp_2s_ancestral'),
    'dpmpp_sde': Row(None, 2, True, 'k-diffusion, sample_dpmpp_sde', 'diffusers.DPMSolverSDEScheduler'),
    'lcm': Row(None, 1, True, 'Song et al. 2023, Algorithm 1; Luo et al. 2023, Algorithm 3', 'diffusers.LCMScheduler'),
    'reverse_diffusion': Row(None, 1, True, 'Song et al. 2021, Eq. 46', 'diffusers.ScoreSdeVeScheduler'),
    'euler_maruyama': Row(None, 1, True, 'Song et al. 2021, Eq. 6'),
    'ncsn': Row(None, 100, True, 'Song & Ermon 2019, Algorithm 1'),
    'no_predictor': Row(None, 0, False, 'Song et al. 2021, Appendix G'),
    'churn': Row(None, 0, True, 'Karras et al. 2022, Algorithm 2', 'diffusers.EulerDiscreteScheduler', 'corrector'),
    'langevin': Row(None, 1, True, 'Song et al. 2021, Algorithms 4-5', 'diffusers.ScoreSdeVeScheduler', 'corrector'),
    'annealed_langevin': Row(None, 1, True, 'Song & Ermon 2019, Algorithm 1', '', 'corrector'),
}
