"""A diffusion system: six functions make a paper (times, process, parameterisation, weighting, network, dropout)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.times import discrete_uniform, uniform
from gen_jax.systems.diffusion_likelihood import likelihood_predicts
from gen_jax.systems.diffusion_predicts import Trained, predicts
from gen_jax.systems.inputs import arguments, condition_of
from gen_jax.systems.spaces import latents, pixels
from gen_jax.systems.text import frozen_text_encoder, tell, with_text
from gen_jax.types import Objective, Parameterisation, Process, System, Times, Variables

__all__ = ['diffusion']


def _agree(process, parameterisation, times, weighting, loss, levels, moved):
    """Refuses parts that were made for different processes, targets or grey levels."""
    drawn = getattr(times, 'process', process)
    if (drawn.t_min, drawn.t_max, drawn.steps) != (process.t_min, process.t_max, process.steps):
        raise ValueError(f'times for t in [{drawn.t_min:g}, {drawn.t_max:g}] (steps {drawn.steps}), but the process '
                         f'has [{process.t_min:g}, {process.t_max:g}] (steps {process.steps}); make them of that one')
    space = getattr(loss, 'space', parameterisation.space)
    counted = getattr(weighting, 'space', space)
    if space and counted != space:
        raise ValueError(f'the weighting is made for errors of {counted}, but the network predicts {space}: give it '
                         f'target={space[0]!r}' + (f', sigma_data={space[1]}' if len(space) > 1 else ''))
    decoded = getattr(loss, 'levels', None)
    if decoded is not None and (decoded != levels or moved):
        raise ValueError(f'the loss decodes {decoded} grey levels in [-1, 1], but the system has levels {levels}, or '
                         'dequantise or image_range set; give both the same levels, and the others their defaults')


def diffusion(network, process: Process, parameterisation: Parameterisation, *, image_shape: Sequence[int],
              times: Times | None = None, weighting: Callable | None = None, loss: Callable | None = None,
              cond: Mapping[str, str] | None = None, null: Mapping[str, float | str] | None = None,
              cond_dropout: float = 0.1, solver: str = 'ddim', spacing: str | None = None,
              settings: Mapping[str, Any] | None = None, clip: float | None = 1.0, steps: int = 50,
              max_steps: int = 1000, loss_times: int = 10, levels: int = 256, dequantise: bool = False,
              image_range: tuple[float, float] = (-1.0, 1.0), first_stage=None,
              scaling_factor: float | None = None, text_encoder=None, tokenizer=None) -> System:
    """A denoising diffusion model over images, or over the latents of a frozen autoencoder, with classifier-free
    guidance.

    Args:
        network: a Linen module, network(x [B, H, W, C], label [B], **cond, deterministic=...) -> [B, H, W, C].
        process: x_t = alpha(t) x0 + sigma(t) eps.
        parameterisation: what the network's output means.
        image_shape: (H, W, C) of what is generated.
        times: the distribution of training times; default: uniform over the process.
        weighting: level -> weight [B] of the squared error in the network's own space; default: the loss's own (1).
        loss: (network, process, parameterisation, weighting) -> loss(x0, t, noise, cond) [B], see
            gen_jax.diffusion.loss; default: `denoising_loss`.
        cond: network keyword -> batch key, for instance {'class_labels': 'label'}; 'added_cond/time_ids' is an entry of
            the keyword added_cond.
        null: network keyword -> the value that stands for 'no condition', for instance {'class_labels': 10}, or the
            batch key that holds it: the embedding of the empty caption, or of what a picture should not be.
        cond_dropout: probability with which an example's condition is replaced by `null` in training (Ho & Salimans
            2022, Algorithm 1); 0 trains no unconditional branch, and guidance is then refused.
        solver, spacing, steps: defaults of sampling: names in gen_jax.sampling and its grids, and the number of steps.
        settings: further defaults of sampling, by keyword: eta, order, rho, corrector, snr ...
        clip: static threshold of x0 while sampling; None: none. eps is recomputed from the clipped x0, without which
            guidance leads deterministic samplers off the data (on digits, at scale 2: 71 % instead of 100 % right).
        max_steps: the largest number of sampling steps, to which grids are padded.
        levels: grey levels of the data, for bits/dim (the digits have 17).
        dequantise: train on grey values moved uniformly within their bins, which then fill [-1, 1], as models whose
            likelihood is measured are (Song et al. 2021, App. D.2).
        image_range: what the model's own x0 spans, where it is not [-1, 1]: NCSN and VE models have (0, 1). Images go
            in and come out in [-1, 1] all the same. `clip` must then be None.
        first_stage: Linen module with `encode(image) -> (mean, log_var)` and `decode(z) -> image`, whose latents are
            diffused (Rombach et al. 2022); config.frozen.first_stage says where its weights are. Batches hold its
            cached 'mean' (and 'log_var'), or pictures. `clip` must then be None.
        scaling_factor: what latents are multiplied by; None: 1 / their standard deviation in the first batch.
        text_encoder: a CLIP with `text_states(tokens)`, frozen, for batches that hold 'tokens' in place of cached
            'encoder_hidden_states', and for prompts; config.frozen.text_encoder says where its weights are.
        tokenizer: list of str -> int [N, L], for the settings `prompt` and `negative_prompt`.
        loss_times: number of stratified times per example of the predict 'losses'.

    Returns:
        A System with the parameters 'unet', the objective 'denoise', and the predicts

        * generate: 'image' [B, H, W, C] in [-1, 1]. Settings: see `gen_jax.systems.diffusion_predicts`.
        * edit: 'image', from each image of the batch noised to `strength` (SDEdit; Meng et al. 2022).
        * reconstruct: 'image', from each image inverted to noise and sampled again (DDIM inversion).
        * encode: 'x_T' [B, H, W, C] (of latents: [B, h, w, c]), that noise.
        * interpolate: 'image' [B, pictures, H, W, C], between two draws of noise on a great circle.
        * inpaint: 'image', each picture of the batch with what `keep` ('top', 'left', 'frame', an array ...) or the
          batch's own 'mask' (1 is known) does not cover painted anew; jump_n_sample > 1 is RePaint.
        * generate_ode: 'image', by the adaptive probability-flow ODE to `tol`, and the calls spent, 'nfe' [B].
        * likelihood: 'bits_per_dim' [B] by the probability-flow ODE. Settings: divergence ('exact', 'rademacher',
          'gaussian'), probes, tol, max_nfe.
        * vlb, on a discrete table: 'bits_per_dim' [B], 'prior' [B], 'terms' [B, T] of the variational bound.
        * losses: 'loss' [B, loss_times] and 't': the held-out loss of the conditional model, unweighted, at times that
          are fixed by the example's index.

    Raises:
        ValueError: unknown solver or setting, null without its condition, dropout outside [0, 1), settings of pixels
            for a model of latents.
    """
    cond, null = dict(cond or {}), dict(null or {})
    if not 0.0 <= cond_dropout < 1.0:
        raise ValueError(f'cond_dropout {cond_dropout}: a probability in [0, 1)')
    stray = set(null) - set(cond)
    if stray:
        raise ValueError(f'null value for {sorted(stray)[0]!r}, which is no condition: choose from {sorted(cond)}')
    low, high = image_range
    if levels < 2 or loss_times < 1 or clip is not None and not clip > 0:
        raise ValueError(f'levels {levels} must be at least 2, loss_times {loss_times} at least 1 and clip {clip} '
                         'positive (None: no clipping)')
    if not low < high or clip is not None and (low, high) != (-1.0, 1.0):
        raise ValueError(f'image_range {image_range}: low < high, and another than (-1, 1) needs clip None')
    _agree(process, parameterisation, times, weighting, loss, levels, dequantise or (low, high) != (-1.0, 1.0))
    if first_stage is None and scaling_factor is not None:
        raise ValueError(f'scaling_factor {scaling_factor} is of latents: give first_stage, too')
    if first_stage is not None and (clip is not None or dequantise or (low, high) != (-1.0, 1.0)):
        raise ValueError(f'with a first_stage, clip is {clip}, dequantise {dequantise} and image_range {image_range}: '
                         'latents have no bounds and no grey levels; set clip to None and leave out the others')
    space = pixels(image_shape, levels, dequantise, (low, high)) if first_stage is None else \
        latents(first_stage, image_shape, scaling_factor)
    if tokenizer is not None and text_encoder is None:
        raise ValueError('a tokenizer is for prompts, which need text_encoder, too')
    frozen = {**space.frozen, **({} if text_encoder is None else frozen_text_encoder(text_encoder))}

    def told(variables, batch):
        return batch if text_encoder is None else tell(text_encoder, variables, batch)

    times = times or (uniform if process.steps is None else discrete_uniform)(process)
    make_loss = loss or denoising_loss
    guided = bool(null) and cond_dropout > 0

    def apply(params, noise=None):
        def call(x, label, cond):
            if noise is None:
                return network.apply({'params': params}, x, label, **arguments(cond), deterministic=True)
            return network.apply({'params': params}, x, label, **arguments(cond), deterministic=False,
                                 rngs={'dropout': noise.key('dropout')})
        return call

    def condition(batch):
        return condition_of(batch, cond)

    model = Trained(apply, process, parameterisation, space, tuple(image_shape), cond, null, guided, condition, clip,
                    max_steps, {'steps': steps, 'solver': solver, 'spacing': spacing, **(settings or {})}, loss_times,
                    levels, dequantise, (low, high))
    uses = {**predicts(model), **likelihood_predicts(model)}
    if text_encoder is not None:
        uses = {name: with_text(use, text_encoder, tokenizer) for name, use in uses.items()}
    uses['generate'].options(**model.settings)  # refuses names and settings now, not after the training

    def init(key, batch):
        variables = Variables({}, measured := space.extra(batch), _zeros(frozen))
        batch = told(variables, batch)
        x = jnp.asarray(space.read(variables, {k: v[:1] for k, v in batch.items()}))
        given = {k: v[:1] for k, v in condition(batch).items()}
        history = {'times': times.init()} if hasattr(times, 'init') else {}
        params = network.init(key, x, jnp.zeros(1), **arguments(given))['params']
        return {'unet': params}, {**history, **measured}

    def objective(params, state, batch, noise):
        variables = Variables({}, state.extra, state.frozen)
        batch = told(variables, batch)
        x0, given = space.read(variables, batch, noise), condition(batch)
        t, importance = times(noise, x0.shape[0], state.extra)
        if guided:
            drop = noise.bernoulli('cond_dropout', cond_dropout)
            nothing = model.nulls(batch)
            given = {k: jnp.where(drop.reshape((-1,) + (1,) * (v.ndim - 1)), jnp.asarray(nothing[k], v.dtype), v)
                     if k in null else v for k, v in given.items()}
        per_example = make_loss(apply(params['unet'], noise), process, parameterisation, weighting)
        values = per_example(x0, t, noise, given)
        history = {}
        if hasattr(times, 'update'):
            history = {'times': times.update(state.extra['times'], t, jax.lax.stop_gradient(values))}
        return jnp.mean(importance * values), ({}, history)

    # A history of losses is one for the whole batch: examples meet in it.
    return System(init=init, frozen=frozen, predict=uses, objectives={
        'denoise': Objective(objective, ('unet',), 'unet', per_example=not hasattr(times, 'update'))})


def _zeros(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(shapes))
