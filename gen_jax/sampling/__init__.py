"""Sampling: the scan (base), solvers and grids."""

from gen_jax.sampling.adaptive import require_converged, sample_adaptive, sample_fixed
from gen_jax.sampling.base import chain, prior, repeat, sample
from gen_jax.sampling.classifier_shift import classifier_shift
from gen_jax.sampling.compat import from_diffusers, make_clip, make_sampler, retarget
from gen_jax.sampling.correctors import (
    annealed_langevin,
    euler_maruyama,
    langevin,
    ncsn,
    no_predictor,
    reverse_diffusion,
)
from gen_jax.sampling.editing import lerp, slerp, start_from
from gen_jax.sampling.grid_edits import reverse, truncate
from gen_jax.sampling.grids import grid
from gen_jax.sampling.inpainting import repaint, repaint_grid, replace_known, time_travel
from gen_jax.sampling.inversion import ddim_inverse
from gen_jax.sampling.likelihood import bits_per_dim, dequantise, log_likelihood
from gen_jax.sampling.multistep import (
    deis,
    dpm_solver_multistep,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    lms,
    prime,
)
from gen_jax.sampling.pndm import ipndm, plms, pndm
from gen_jax.sampling.singlestep import dpm2, dpm_solver_3, dpm_solver_interleaved, dpm_solver_singlestep, dpmpp_2s
from gen_jax.sampling.solvers import ddim, ddpm, euler, heun
from gen_jax.sampling.stochastic import churn, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, euler_ancestral, lcm
from gen_jax.sampling.table import SAMPLERS
from gen_jax.sampling.unipc import unipc

SOLVERS = tuple(name for name, row in SAMPLERS.items() if row.kind == 'solver')
"""Names of the solvers, for configs and error messages."""
CORRECTORS = tuple(name for name, row in SAMPLERS.items() if row.kind == 'corrector')
"""Names of the correctors, which stay on their level (and churn, which goes up from it), for `chain`."""

__all__ = ['SOLVERS', 'CORRECTORS', 'sample', 'chain', 'repeat', 'prior', 'grid', 'truncate', 'reverse',
           'from_diffusers', 'make_sampler', 'make_clip', 'retarget',
           'ddpm', 'ddim', 'euler', 'heun',
           'dpm2', 'dpmpp_2s', 'dpm_solver_3', 'dpm_solver_singlestep', 'dpm_solver_interleaved', 'euler_ancestral',
           'dpm2_ancestral', 'dpmpp_2s_ancestral', 'dpmpp_sde', 'lcm', 'churn', 'reverse_diffusion', 'euler_maruyama',
           'no_predictor', 'langevin', 'annealed_langevin', 'ncsn',
           'lms', 'pndm', 'plms', 'ipndm', 'deis', 'dpm_solver_multistep', 'dpmpp_2m', 'dpmpp_3m', 'dpmpp_2m_sde',
           'unipc', 'prime',
           'classifier_shift', 'replace_known', 'time_travel', 'repaint', 'repaint_grid', 'ddim_inverse', 'start_from',
           'lerp', 'slerp', 'sample_adaptive', 'sample_fixed', 'require_converged', 'log_likelihood', 'dequantise',
           'bits_per_dim']
