"""How well a diffusion model explains data: held-out losses by time, and bits per dimension by two roads."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import sampling
from gen_jax.diffusion.guidance import clip_x0
from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.vlb import VARIANCES, vlb
from gen_jax.rng import Noise
from gen_jax.sampling.adaptive import require_converged
from gen_jax.sampling.likelihood import bits_per_dim, dequantise, log_likelihood
from gen_jax.systems import plan
from gen_jax.systems.inputs import images_of
from gen_jax.systems.spaces import to_range
from gen_jax.types import Predict

__all__ = ['likelihood_predicts']


def likelihood_predicts(model) -> dict[str, Predict]:
    """The predicts 'losses', 'likelihood' and, on a discrete table, 'vlb'; see `gen_jax.systems.diffusion`."""
    process = model.process

    def denoiser(variables):
        return model.parameterisation.denoiser(model.apply(variables.params['unet']), process)

    def losses(variables, keys, batch, options):
        del options
        noise = Noise(keys)
        x0, given = model.space.read(variables, batch, noise), model.condition(batch)
        per_example = denoising_loss(model.apply(variables.params['unet']), process, model.parameterisation)
        u, low, span = noise.uniform('offset'), process.t_min, process.t_max - process.t_min

        def one(i):  # stratified: one time in each of loss_times equal parts of [t_min, t_max]
            t = low + span * (i + u) / model.loss_times
            return per_example(x0, t, noise.at(i), given), t

        values, at = jax.lax.map(one, jnp.arange(model.loss_times))
        return {'loss': values.T, 't': at.T}

    def likelihood(variables, keys, batch, options):
        noise, (how,) = Noise(keys), options['how']
        divergence, probes = how
        x = to_range(dequantise(noise, images_of(batch, model.image_shape), model.levels, model.dequantise),
                      *model.image_range)
        found = log_likelihood(denoiser(variables), process, x, model.condition(batch), noise=noise,
                               divergence=divergence, probes=int(probes), rtol=options['tol'], atol=options['tol'],
                               max_nfe=options['max_nfe'])
        dims = int(np.prod(model.image_shape))
        log_p = found.log_p + dims * np.log(0.5 * (model.image_range[1] - model.image_range[0]))  # in units of [-1, 1]
        return {'bits_per_dim': bits_per_dim(log_p, dims, model.levels, model.dequantise),
                'stderr': found.stderr / (dims * np.log(2.0)), 'nfe': found.nfe, 'converged': found.converged}

    def likelihood_options(divergence: str = 'rademacher', probes: int = 1, tol: float = 1e-4, max_nfe: int = 2000):
        if divergence not in ('exact', 'rademacher', 'gaussian'):
            raise ValueError(f"divergence {divergence!r}: choose from 'exact', 'rademacher', 'gaussian'")
        plan.check_like('tol', tol, 1.0), plan.whole('probes', probes), plan.whole('max_nfe', max_nfe)
        if not tol > 0:
            raise ValueError(f'tol must be positive, got {tol}')
        return {'how': {(divergence, str(probes)): ()}, 'tol': jnp.float32(tol), 'max_nfe': jnp.int32(max_nfe)}

    def bound(variables, keys, batch, options):
        (variance,) = options['variance']
        denoise = denoiser(variables)
        denoise = denoise if model.clip is None else clip_x0(model.clip)(denoise)
        x0 = images_of(batch, model.image_shape)
        found = vlb(Noise(keys), denoise, x0, options['grid'], model.condition(batch), variance, model.levels)
        return {'bits_per_dim': found.total, 'prior': found.prior, 'terms': found.terms.T}

    def bound_options(steps: int | None = None, variance: str | None = None):
        steps = process.steps if steps is None else plan.whole('steps', steps)
        learned = getattr(model.parameterisation, 'channels', 1) == 2
        variance = variance or ('learned' if learned else 'fixed_small')
        if variance not in VARIANCES or variance.startswith('learned') and not learned:
            raise ValueError(f'variance {variance!r}: choose from {VARIANCES}; a learned one needs '
                             'parameterisation.learned_range')
        return {'grid': sampling.grid(process, steps, 'linspace', max_steps=process.steps),
                'variance': {variance: ()}}

    def check(out):
        require_converged(SimpleNamespace(**out))

    if model.space.shape != model.image_shape or model.space.frozen:
        return {'losses': Predict(losses)}  # the density of a latent is none of its picture
    found = {'losses': Predict(losses), 'likelihood': Predict(likelihood, likelihood_options, check=check)}
    # The bound decodes grey levels in [-1, 1].
    if process.steps is None or model.dequantise or tuple(model.image_range) != (-1.0, 1.0):
        return found
    return {**found, 'vlb': Predict(bound, bound_options)}
