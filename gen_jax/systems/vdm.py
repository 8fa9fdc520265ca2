"""Variational diffusion models: a bound on the likelihood, trained through the noise schedule as well.

    -log p(x) <= KL(q(z_1 | x) || N(0, 1)) + E[-log p(x | z_0)] + L_T

Kingma et al., 2021 (https://arxiv.org/abs/2107.00630), Eq. 11. The process is built from the network's parameters.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import sampling
from gen_jax.diffusion.learned import learned
from gen_jax.diffusion.parameterisation import eps as eps_parameterisation
from gen_jax.diffusion.process import level_at, perturb
from gen_jax.diffusion.times import low_discrepancy, uniform
from gen_jax.diffusion.vlb import grey_level_nll, prior_kl
from gen_jax.losses.reconstruction import bin_centres, image_to_level, level_to_image, nearest_level
from gen_jax.rng import Noise
from gen_jax.sampling.count import network_calls
from gen_jax.systems import plan
from gen_jax.systems.inputs import condition_of, images_of
from gen_jax.types import Array, Level, Objective, Predict, Process, System

__all__ = ['vdm']

TERMS = ('diffusion', 'prior', 'reconstruction')


def even_grid(process: Process, steps: Array, max_steps: int) -> Level:
    """Rows [max_steps + 1] evenly from t_max to t_min in `steps` steps, on the device: the process has parameters."""
    index = jnp.arange(max_steps + 1, dtype=jnp.int32)
    t = process.t_max - (process.t_max - process.t_min) * jnp.minimum(index / steps, 1.0)
    return Level(t, process.alpha(t), process.sigma(t), index, jnp.full_like(index, steps))


def vdm(network, *, image_shape: Sequence[int], levels: int = 256, timesteps: int = 0, antithetic: bool = True,
        cond: Mapping[str, str] | None = None, solver: str = 'ddpm', steps: int = 250,
        max_steps: int = 1000) -> System:
    """A diffusion model as a likelihood model of grey levels.

    Args:
        network: a Linen module with network(z [B, H, W, C], t [B], **cond, deterministic=...) -> eps_hat and the
            methods noise_level(t) -> gamma and predict_noise(z, gamma, **cond, deterministic=...), as
            `gen_jax.models.VDM`.
        image_shape: (H, W, C).
        levels: grey levels of the data: 17 for scikit-learn's digits, 256 for photographs.
        timesteps: T of the discrete-time loss (Eq. 13); 0 is the limit of infinitely many (Eq. 17).
        antithetic: times evenly spaced over the batch (Appendix I.1), not independent.
        cond: network keyword -> batch key, for instance {'conditioning': 'label'}.
        solver: of 'generate'; 'ddpm' is the paper's ancestral sampling (Appendix A.4).
        steps, max_steps: default and largest number of sampling steps.

    Returns:
        A System with parameters 'vdm', objective 'elbo', optimizer 'vdm' and these predicts:

        * generate (settings: steps, solver and its keywords): 'image' in [-1, 1], on the grid of levels.
        * bpd (settings: samples, the stratified times per example): 'bits_per_dim' and its parts 'diffusion', 'prior'
          and 'reconstruction', all in bits per dimension, [B].
        * losses (settings: samples): the diffusion part by time, 'loss' and 't' [B, samples].

    Raises:
        ValueError: levels < 2, timesteps < 0, unknown solver.
    """
    cond = dict(cond or {})
    if levels < 2:
        raise ValueError(f'levels is {levels}; a likelihood of grey levels needs at least 2')
    if timesteps < 0:
        raise ValueError(f'timesteps is {timesteps}; give T >= 1, or 0 for continuous time')
    stand_in = learned(lambda t: 10.0 * t - 5.0)  # where no parameters are at hand: to check settings, to count calls

    def apply(params, *args, noise=None, **kwargs):
        rngs = None if noise is None else {'dropout': noise.key('dropout')}
        return network.apply({'params': params}, *args, **kwargs, deterministic=noise is None, rngs=rngs)

    def schedule(params):
        return lambda t: network.apply({'params': params}, t, method='noise_level')

    def condition(batch):
        return condition_of(batch, cond)

    def data(batch):
        return bin_centres(image_to_level(images_of(batch, image_shape), levels), levels)

    def init(key, batch):
        given = {k: jnp.asarray(v)[:1] for k, v in condition(batch).items()}
        x = data({k: jnp.asarray(v)[:1] for k, v in batch.items() if k == 'image'})
        return {'vdm': network.init(key, x, jnp.zeros(1), **given).get('params', {})}, {}

    def diffusion_loss(params, x, t, noise, given, train=False):
        """Bits per dimension [B] of L_T (Eq. 13), or of L_infinity (Eq. 17), at one time per example."""
        gamma = schedule(params)
        if timesteps:
            t = jnp.maximum(jnp.ceil(t * timesteps), 1.0) / timesteps
            at_t = gamma(t)
            weight = 0.5 * timesteps * jnp.expm1(at_t - gamma(t - 1.0 / timesteps))
        else:
            at_t, speed = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
            weight = 0.5 * speed
        eps = noise.normal('eps', x)
        z = perturb(x, eps, level_at(learned(lambda _: at_t), t))
        eps_hat = apply(params, z, at_t, **given, method='predict_noise', noise=noise if train else None)
        return weight * jnp.mean(jnp.square(eps - eps_hat), axis=(1, 2, 3)) / math.log(2)

    def end_losses(params, x, noise):
        """Bits per dimension [B] of both ends, the prior's and the reconstruction's."""
        process = learned(schedule(params))
        first, last = level_at(process, jnp.float32(0)), level_at(process, jnp.float32(1))
        std = first.sigma / first.alpha
        decoded = x + std * noise.normal('eps_0', x)
        centres = bin_centres(jnp.arange(levels), levels)
        return prior_kl(x, last, 1.0), grey_level_nll(x, decoded, 2.0 * jnp.log(std), centres)

    def loss(params, state, batch, noise):
        x, given = data(batch), condition(batch)
        process = learned(schedule(params['vdm']))
        t, _ = (low_discrepancy if antithetic else uniform)(process)(noise, x.shape[0], state.extra)
        terms = (diffusion_loss(params['vdm'], x, t, noise, given, train=True), *end_losses(params['vdm'], x, noise))
        metrics = {name: term.mean() for name, term in zip(TERMS, terms, strict=True)}
        total = sum(metrics.values())
        ends = {f'gamma_{t}': schedule(params['vdm'])(jnp.float32(t)) for t in (0, 1)}
        return total, ({'bits_per_dim': total, **metrics, **ends}, {})

    def by_time(variables, keys, batch, options, ends):
        """The diffusion loss and, if asked for, those of both ends, and t: [samples, B] each."""
        params, noise = variables.params['vdm'], Noise(keys)
        x, given, n = data(batch), condition(batch), options['sample'].shape[0]
        u = noise.uniform('offset')

        def one(i):
            t, part = (i + u) / n, noise.at(i)
            return diffusion_loss(params, x, t, part, given), end_losses(params, x, part) if ends else (), t

        return jax.lax.map(one, options['sample'])

    def bpd(variables, keys, batch, options):
        diffusion, ends, _ = by_time(variables, keys, batch, options, ends=True)
        terms = {name: term.mean(0) for name, term in zip(TERMS, (diffusion, *ends), strict=True)}
        return {'bits_per_dim': sum(terms.values()), **terms}

    def losses(variables, keys, batch, options):
        values, _, t = by_time(variables, keys, batch, options, ends=False)
        return {'loss': values.T, 't': t.T}

    def loss_options(samples: int = 10):
        if samples < 1:
            raise ValueError(f'samples is {samples}; the bound needs at least 1 time per example')
        return {'sample': np.arange(samples, dtype=np.int32)}  # its length is static: another one recompiles

    def generate(variables, keys, batch, options):
        params, noise = variables.params['vdm'], Noise(keys)
        process = learned(schedule(params))
        denoise = eps_parameterisation(label_scale=1.0).denoiser(
            lambda z, t, given: apply(params, z, t, **given), process)
        x_T = noise.normal('x_T', (keys.shape[0], *image_shape))
        grid = even_grid(process, options['steps'], max_steps)
        (sampler,) = plan.make(options['sampler'], process, plan.find)
        point = sampling.sample(noise, denoise, sampler, x_T, grid, condition(batch))
        return {'image': level_to_image(nearest_level(point.x / grid.alpha[-1], levels), levels)}

    def options(steps: int = steps, solver: str = solver, **settings):
        plan.whole('steps', steps)
        if steps > max_steps:
            raise ValueError(f'steps is {steps}; give 1 to {max_steps} (max_steps)')
        for key in settings:
            if key in ('spacing', 'corrector', 'guidance_scale', 'threshold'):
                raise ValueError(f'{key}: a VDM is sampled on even steps of its learned schedule, without correctors, '
                                 'guidance and thresholds; its settings are steps, solver and the keywords of that '
                                 'solver')
        parts = [(solver, plan.find(solver, 'solver'))]
        return {'steps': np.int32(steps), 'sampler': plan.bind(parts, stand_in, settings, ('steps', 'solver'))}

    def nfe(options):
        (sampler,) = plan.make(options['sampler'], stand_in, plan.find)
        return network_calls(sampler, even_grid(stand_in, options['steps'], max_steps))

    options()  # refuses a solver that there is not now, not after the training
    predict = {'generate': Predict(generate, options, tuple(cond.values()),
                                   defaults={'steps': steps, 'solver': solver}, nfe=nfe),
               'bpd': Predict(bpd, loss_options), 'losses': Predict(losses, loss_options)}
    return System(init, {'elbo': Objective(loss, ('vdm',), 'vdm')}, predict)
