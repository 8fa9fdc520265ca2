"""A diffusion system: six functions make a paper (times, process, parameterisation, weighting, network, dropout)."""

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from gen_jax import sampling
from gen_jax.diffusion.guidance import classifier_free, clip_x0
from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.times import uniform
from gen_jax.diffusion.weighting import simple
from gen_jax.rng import Noise
from gen_jax.types import Objective, Parameterisation, Predict, Process, System, Times

__all__ = ['diffusion']


def diffusion(network, process: Process, parameterisation: Parameterisation, *, image_shape: Sequence[int],
              times: Times | None = None, weighting: Callable | None = None, cond: Mapping[str, str] | None = None,
              null: Mapping[str, float] | None = None, cond_dropout: float = 0.1, solver: str = 'ddim',
              spacing: str | None = None, clip: float | None = 1.0, steps: int = 50, max_steps: int = 1000,
              loss_times: int = 10) -> System:
    """A denoising diffusion model over images, with classifier-free guidance.

    Args:
        network: a Linen module, network(x [B, H, W, C], label [B], **cond, deterministic=...) -> [B, H, W, C].
        process: x_t = alpha(t) x0 + sigma(t) eps.
        parameterisation: what the network's output means.
        image_shape: (H, W, C) of what is generated.
        times: the distribution of training times; default: uniform over the process.
        weighting: level -> weight [B] of the squared error in the network's own space; default: 1.
        cond: network keyword -> batch key, for instance {'class_labels': 'label'}.
        null: network keyword -> the value that stands for 'no condition', for instance {'class_labels': 10}.
        cond_dropout: probability with which an example's condition is replaced by `null` in training (Ho & Salimans
            2022, Algorithm 1); 0 trains no unconditional branch, and guidance is then refused.
        solver: a name in gen_jax.sampling.solvers; its traced keywords (eta) are settings of 'generate'.
        spacing: of the sampling grid, see gen_jax.sampling.grid; None: its default for the process.
        clip: static threshold of x0 while sampling; None: none. eps is recomputed from the clipped x0, without which
            guidance leads deterministic samplers off the data (on digits, at scale 2: 71 % instead of 100 % right).
        steps, max_steps: default and largest number of sampling steps (grids are padded to max_steps).
        loss_times: number of stratified times per example of the predict 'losses'.

    Returns:
        A System with the parameters 'unet', the objective 'denoise', and the predicts
        'generate' (settings steps, guidance_scale or None, eta ...; batch: the condition) -> {'image'} in [-1, 1], and
        'losses' (batch: images and condition) -> {'loss' [B], 't' [B]}: the held-out loss at times that are fixed by
        the example's index, of the conditional model.

    Raises:
        ValueError: unknown solver, null without its condition, dropout outside [0, 1).
    """
    cond, null = dict(cond or {}), dict(null or {})
    if not 0.0 <= cond_dropout < 1.0:
        raise ValueError(f'cond_dropout {cond_dropout}: a probability in [0, 1)')
    stray = set(null) - set(cond)
    if stray:
        raise ValueError(f'null value for {sorted(stray)[0]!r}, which is no condition: choose from {sorted(cond)}')
    if solver not in sampling.SOLVERS:
        raise ValueError(f'solver {solver!r}: choose from {", ".join(sampling.SOLVERS)}')
    make_solver = getattr(sampling, solver)
    traced = tuple(k for k in inspect.signature(make_solver).parameters if k in ('eta',))
    weighting, times = weighting or simple(), times or uniform(process)
    guided = bool(null) and cond_dropout > 0

    def apply(params, noise=None):
        def call(x, label, cond):
            if noise is None:
                return network.apply({'params': params}, x, label, **cond, deterministic=True)
            return network.apply({'params': params}, x, label, **cond, deterministic=False,
                                 rngs={'dropout': noise.key('dropout')})
        return call

    def condition(batch):
        missing = [key for key in cond.values() if key not in batch]
        if missing:
            raise ValueError(f'the batch has no {missing[0]!r}, which conditions the network: it has {sorted(batch)}; '
                             'use a source with labels, or a system without cond')
        return {name: batch[key] for name, key in cond.items()}

    def check(image):
        if tuple(image.shape[1:]) != tuple(image_shape):
            raise ValueError(f'images of shape {tuple(image.shape[1:])} for a model of image_shape '
                             f'{tuple(image_shape)}; set data.options or transforms, or system.image_shape')

    def init(key, batch):
        check(batch['image'])
        x = jnp.asarray(batch['image'])[:1]
        given = {k: v[:1] for k, v in condition(batch).items()}
        return {'unet': network.init(key, x, jnp.zeros(1), **given)['params']}, {}

    def loss(params, state, batch, noise):
        check(batch['image'])
        x0, given = batch['image'], condition(batch)
        t, importance = times(noise, x0.shape[0], state.extra)
        if guided:
            drop = noise.bernoulli('cond_dropout', cond_dropout)
            given = {k: jnp.where(drop.reshape((-1,) + (1,) * (v.ndim - 1)), jnp.asarray(null[k], v.dtype), v)
                     if k in null else v for k, v in given.items()}
        per_example = denoising_loss(apply(params['unet'], noise), process, parameterisation, weighting)
        return jnp.mean(importance * per_example(x0, t, noise, given)), ({}, {})

    def losses(variables, keys, batch, options):
        del options
        noise = Noise(keys)
        x0, given = batch['image'], condition(batch)
        per_example = denoising_loss(apply(variables.params['unet']), process, parameterisation, simple())
        u = noise.uniform('offset')

        def one(i):  # stratified: one time in each of loss_times equal parts of [t_min, t_max]
            t = process.t_min + (process.t_max - process.t_min) * (i + u) / loss_times
            return per_example(x0, t, noise.at(i), given), t

        values, at = jax.lax.map(one, jnp.arange(loss_times))
        return {'loss': values.T, 't': at.T}

    def options(steps: int = steps, guidance_scale: float | None = None, spacing: str | None = spacing, **settings):
        unknown = set(settings) - set(traced)
        if unknown:
            raise ValueError(f'unknown sampling setting {sorted(unknown)[0]!r}: choose from '
                             f'{", ".join(("steps", "guidance_scale", "spacing", *traced))} for solver {solver}')
        if guidance_scale is not None and not guided:
            raise ValueError(f'guidance_scale {guidance_scale}, but no unconditional branch was trained '
                             '(system.null and system.cond_dropout > 0); use guidance_scale None')
        if not 0.0 <= float(settings.get('eta') or 0.0) <= 1.0:
            raise ValueError(f'eta {settings["eta"]}: expected 0 (DDIM) to 1 (DDPM variance)')
        settings = {**dict.fromkeys(traced, 0.0), **settings}  # always there: setting eta compiles nothing anew
        return {'grid': sampling.grid(process, steps, spacing=spacing, max_steps=max_steps),
                'guidance_scale': None if guidance_scale is None else jnp.float32(guidance_scale),
                'solver': {k: jnp.float32(v) for k, v in settings.items()}}

    def generate(variables, keys, batch, options):
        noise = Noise(keys)
        denoise = parameterisation.denoiser(apply(variables.params['unet']), process)
        denoise = classifier_free(options['guidance_scale'], null)(denoise)
        if clip is not None:
            denoise = clip_x0(clip, recompute_eps=True)(denoise)
        grid = options['grid']
        x_T = sampling.prior(noise, (keys.shape[0], *image_shape), grid)
        point = sampling.sample(noise, denoise, make_solver(**options['solver']), x_T, grid, condition(batch))
        return {'image': jnp.clip(point.x, -1.0, 1.0)}

    return System(init=init, objectives={'denoise': Objective(loss, ('unet',), 'unet')},
                  predict={'generate': Predict(generate, options, tuple(cond.values())), 'losses': Predict(losses)})
