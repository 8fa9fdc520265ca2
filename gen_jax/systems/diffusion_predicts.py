"""What a trained diffusion model is used for: predict functions over one denoiser, one scan and one set of settings."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import sampling
from gen_jax.diffusion.guidance import classifier_free, clip_x0, dynamic_threshold, interval
from gen_jax.rng import Noise
from gen_jax.sampling import grids
from gen_jax.sampling.adaptive import require_converged, sample_adaptive, time_range
from gen_jax.sampling.count import network_calls
from gen_jax.sampling.inpainting import check_mask
from gen_jax.systems import plan
from gen_jax.systems.spaces import Space
from gen_jax.types import Cond, DenoiseFn, Parameterisation, Predict, Process, PyTree

__all__ = ['Trained', 'predicts']


class Trained(NamedTuple):
    """A diffusion model as its predicts see it."""

    apply: Callable[[PyTree], Callable]
    """params -> network(x, label, cond), deterministic."""
    process: Process
    parameterisation: Parameterisation
    space: Space
    """What x0 is of a picture."""
    image_shape: tuple[int, ...]
    """(H, W, C) of the pictures."""
    cond: Mapping[str, str]
    """Network keyword -> batch key."""
    null: Mapping[str, Any]
    """Network keyword -> the value that stands for no condition, or the batch key that holds it."""
    guided: bool
    """Whether the unconditional branch was trained."""
    condition: Callable[[Mapping], Cond]
    """batch -> cond, refusing a batch that lacks it."""
    clip: float | None
    max_steps: int
    settings: Mapping[str, Any]
    """Default sampling settings: steps, solver, spacing ..."""
    loss_times: int
    levels: int
    """Grey levels of the data."""
    dequantise: bool
    """Whether it was trained on dequantised data that fill [-1, 1] (`sampling.likelihood.dequantise`)."""
    image_range: tuple[float, float]

    def nulls(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Network keyword -> the value of no condition.

        Raises:
            ValueError: it should be in the batch, and is not.
        """
        missing = [v for v in self.null.values() if isinstance(v, str) and v not in batch]
        if missing:
            raise ValueError(f'the batch has no {missing[0]!r}, which stands for no condition: it has {sorted(batch)}')
        return {k: batch[v] if isinstance(v, str) else v for k, v in self.null.items()}


NAMED = ('steps', 'solver', 'spacing', 'corrector', 'corrector_steps', 'guidance_scale', 'guidance_rescale',
         'guidance_sigma_lo', 'guidance_sigma_hi', 'threshold', 'percentile')


def _guidance(scale=None, rescale=None, sigma_lo=None, sigma_hi=None) -> dict[str, PyTree]:
    """Traced guidance settings; which of them are there is static."""
    given = {'rescale': rescale, 'sigma_lo': sigma_lo, 'sigma_hi': sigma_hi}
    given = {k: plan.number(f'guidance_{k}', v) for k, v in given.items() if v is not None}
    if scale is None:
        if given:
            raise ValueError(f'guidance_{sorted(given)[0]} needs a guidance_scale')
        return {}
    if 'sigma_lo' in given or 'sigma_hi' in given:
        given = {'sigma_lo': 0.0, 'sigma_hi': float('inf'), **given}
        interval(float(scale), given['sigma_lo'], given['sigma_hi'])  # refuses an empty interval
    classifier_free(float(scale), {}, given.get('rescale', 0.0))
    return {'scale': jnp.float32(scale), **{k: jnp.float32(v) for k, v in given.items()}}


def _threshold(kind: str | None, clip: float | None, percentile: float | None, centred: bool) -> dict[str, PyTree]:
    """{kind: traced settings} of the threshold on x0."""
    if kind not in (None, 'none', 'static', 'dynamic'):
        raise ValueError(f"threshold {kind!r}: choose from 'static', 'dynamic', 'none'")
    percentile = None if percentile is None else plan.number('percentile', percentile)
    if percentile is not None and kind != 'dynamic':
        raise ValueError(f"percentile {percentile} is of threshold 'dynamic'; set that too")
    kind, percentile = kind or ('none' if clip is None else 'static'), 0.995 if percentile is None else percentile
    limit = 1.0 if clip is None else clip
    if kind == 'none':
        return {}
    if not centred:
        raise ValueError(f"threshold {kind!r} limits x0 to [-limit, limit], but this model's image_range is another; "
                         "use 'none'")
    if kind == 'static':
        return {'static': {'limit': jnp.float32(limit)}}
    dynamic_threshold(percentile, limit)
    return {'dynamic': {'percentile': jnp.float32(percentile), 'limit': jnp.float32(limit)}}


def _grid(model: Trained, steps: int, spacing: str, settings: Mapping[str, Any], strength: float | None):
    process = model.process
    for key, default in plan.keywords(grids.SPACINGS.get(spacing, grids.uniform_t)).items():
        if key in settings and (isinstance(default, float) or default is None and key not in ('times', 'sigmas')):
            plan.number(f'{key} of spacing {spacing!r}', settings[key])
        elif key in settings and key in ('times', 'sigmas'):
            try:
                np.asarray(settings[key], np.float64)
            except (TypeError, ValueError):
                raise ValueError(f'{key} of spacing {spacing!r} must be numbers, got {settings[key]!r}') from None
    if steps == 1 and strength is None and process.steps and spacing in ('leading', 'linspace'):
        raise ValueError(f"spacing {spacing!r} with one step starts at t = 0, where there is no noise; use 'trailing'")
    try:
        grid = grids.grid(process, steps, spacing, max_steps=model.max_steps, **settings)
        return grid if strength is None else sampling.truncate(grid, plan.number('strength', strength))
    except TypeError as e:
        raise ValueError(f'spacing {spacing!r} with {settings}: {e}') from None


def sampling_options(model: Trained, *, steps: int | None = None, solver: str | None = None,
                     spacing: str | None = None, corrector: str | None = None, corrector_steps: int | None = None,
                     guidance_scale: float | None = None, guidance_rescale: float | None = None,
                     guidance_sigma_lo: float | None = None, guidance_sigma_hi: float | None = None,
                     threshold: str | None = None, percentile: float | None = None, strength: float | None = None,
                     **settings) -> dict[str, PyTree]:
    """Flat settings -> the options pytree of every predict that samples. None is the model's default.

    Args:
        steps, solver, spacing: how many, and names in gen_jax.sampling and its grids.
        corrector: name of a corrector, which runs `corrector_steps` times before each step of the solver; 'none'.
        guidance_scale: None samples conditionally, with one call of the network.
        guidance_rescale, guidance_sigma_lo, guidance_sigma_hi: see `classifier_free` and `interval`.
        threshold: 'static' (at the model's clip), 'dynamic' (at `percentile`, 0.995) or 'none'.
        strength: share of the steps to walk, in (0, 1], for a start from a picture.
        settings: keywords of the solver, the corrector and the spacing. The model's defaults for parts that are not
            used are passed over.

    Raises:
        ValueError: unknown solvers, correctors, spacings and settings, with the choices; values out of range;
            guidance of a model without an unconditional branch.
    """
    process, default = model.process, dict(model.settings)

    def chosen(value, name, otherwise=None):
        found = default.pop(name, None)
        return value if value is not None else found if found is not None else otherwise

    steps, solver, corrector = chosen(steps, 'steps', 50), chosen(solver, 'solver'), chosen(corrector, 'corrector')
    given_steps = chosen(corrector_steps, 'corrector_steps')
    corrector_steps = plan.whole('corrector_steps', 1 if given_steps is None else given_steps)
    spacing = chosen(spacing, 'spacing', 'uniform_t' if process.steps is None else 'leading')
    guidance_scale = chosen(guidance_scale, 'guidance_scale')
    guidance = {'rescale': chosen(guidance_rescale, 'guidance_rescale'),
                'sigma_lo': chosen(guidance_sigma_lo, 'guidance_sigma_lo'),
                'sigma_hi': chosen(guidance_sigma_hi, 'guidance_sigma_hi')}
    if threshold is None:  # the default percentile belongs to the default threshold
        threshold, percentile = chosen(None, 'threshold'), chosen(percentile, 'percentile')
    if guidance_scale is not None and not model.guided:
        raise ValueError(f'guidance_scale {guidance_scale}, but no unconditional branch was trained '
                         '(system.null and system.cond_dropout > 0); use guidance_scale None')
    parts = [(solver, plan.find(solver, 'solver'))]
    if corrector not in (None, 'none'):
        parts.insert(0, (corrector, plan.find(corrector, 'corrector')))
    elif given_steps is not None and corrector is None:
        raise ValueError(f'corrector_steps {given_steps}, but there is no corrector; choose from '
                         f'{", ".join(sampling.CORRECTORS)}')
    grid_keys = plan.keywords(grids.SPACINGS.get(spacing, grids.uniform_t)).keys() - {'max_steps', 'dtype'}
    taken = {*grid_keys, *(k for _, maker in parts for k in plan.keywords(maker))}
    settings = {**{k: v for k, v in default.items() if k in taken},
                **{k: v for k, v in settings.items() if v is not None}}
    grid_settings = {k: settings.pop(k) for k in sorted(grid_keys) if k in settings}
    return {'grid': _grid(model, steps, spacing, grid_settings, strength),
            'guidance': _guidance(guidance_scale, **guidance),
            'threshold': _threshold(threshold, model.clip, percentile, model.space.centred),
            'sampler': plan.bind(parts, process, settings, (*NAMED, *grid_keys)),
            'repeat': {str(corrector_steps): ()}}


def sampler_of(model: Trained, options):
    """The sampler that the options describe: correctors, then the solver, within each row."""
    *correctors, solver = plan.make(options['sampler'], model.process, plan.find)
    (n,) = (int(k) for k in options['repeat'])
    return sampling.chain(*(sampling.repeat(c, n) if n > 1 else c for c in correctors), solver) \
        if correctors else solver


def denoiser(model: Trained, variables, options, batch) -> DenoiseFn:
    """The network's denoiser with guidance and thresholding."""
    denoise = model.parameterisation.denoiser(model.apply(variables.params['unet']), model.process)
    if guidance := options['guidance']:
        scale = guidance['scale']
        if 'sigma_lo' in guidance:
            scale = interval(scale, guidance['sigma_lo'], guidance['sigma_hi'])
        denoise = classifier_free(scale, model.nulls(batch), guidance.get('rescale', 0.0))(denoise)
    for kind, values in options['threshold'].items():
        denoise = {'static': clip_x0, 'dynamic': dynamic_threshold}[kind](**values, recompute_eps=True)(denoise)
    return denoise


def _mask(keep, shape):
    """[1, H, W, 1], 1 where a picture is kept: a named half, 'frame' (all but the centre), or an array [H, W]."""
    rows, columns = np.indices(shape[:2]) / (np.array(shape[:2]) - 1).reshape(2, 1, 1).clip(1)
    named = {'top': rows < 0.5, 'bottom': rows > 0.5, 'left': columns < 0.5, 'right': columns > 0.5,
             'frame': np.maximum(abs(rows - 0.5), abs(columns - 0.5)) > 0.25}
    if isinstance(keep, str) and keep not in named:
        raise ValueError(f'keep {keep!r}: choose from {", ".join(named)}, or give a mask of shape {shape[:2]}, 1 known')
    mask = named[keep] if isinstance(keep, str) else np.asarray(keep, np.float32)
    if mask.shape not in (tuple(shape[:2]), (*shape[:2], 1)):
        raise ValueError(f'keep has shape {mask.shape}, expected that of the pictures, {tuple(shape[:2])}')
    mask = mask.reshape(1, *shape[:2], 1).astype(np.float32)
    check_mask((1, *shape[:2], 1), mask)
    return mask


def predicts(model: Trained) -> dict[str, Predict]:
    """The predict functions of a diffusion model, by name.

    All that sample share their settings: steps, solver, spacing, corrector, corrector_steps, guidance_scale and the
    keywords of the parts that these name (eta, order, rho, s_churn, snr ...); see docs/samplers.md.
    """
    space = model.space
    reads = (*model.cond.values(), *(v for v in model.null.values() if isinstance(v, str)))

    def options(**settings):
        if 'strength' in settings:
            raise ValueError('strength is how far a given picture is noised: a setting of edit, reconstruct and encode')
        return sampling_options(model, **settings)

    def edit_options(strength: float = 0.6, **settings):
        return sampling_options(model, strength=strength, **settings)

    def run(variables, noise, batch, options, x, sampler=None):
        """The scan from x at the first row of the grid; the picture [B, ...] it ends at."""
        sampler = sampler_of(model, options) if sampler is None else sampler
        return sampling.sample(noise, denoiser(model, variables, options, batch), sampler, x, options['grid'],
                               model.condition(batch)).x

    def nfe(options):  # guidance evaluates the network twice in each call of the denoiser
        return network_calls(sampler_of(model, options), options['grid']) * (2 if options['guidance'] else 1)

    def check(out):
        require_converged(SimpleNamespace(**out))

    def generate(variables, keys, batch, options):
        noise = Noise(keys)
        x = sampling.prior(noise, (keys.shape[0], *space.shape), options['grid'])
        return {'image': space.show(variables, run(variables, noise, batch, options, x))}

    def edit(variables, keys, batch, options):
        noise = Noise(keys)
        x = sampling.start_from(noise, space.read(variables, batch), options['grid'])
        return {'image': space.show(variables, run(variables, noise, batch, options, x))}

    def inverted(variables, keys, batch, options):
        """The noise that the picture came from, by the probability-flow ODE walked backwards."""
        back, x0 = {**options, 'grid': options['back'], 'guidance': {}, 'threshold': {}}, space.read(variables, batch)
        (n,) = options['iterations']
        return run(variables, Noise(keys), batch, back, x0, sampling.ddim_inverse(int(n)))

    def reconstruct(variables, keys, batch, options):
        x = inverted(variables, keys, batch, options)
        return {'image': space.show(variables, run(variables, Noise(keys), batch, options, x))}

    def encode(variables, keys, batch, options):
        return {'x_T': inverted(variables, keys, batch, options)}

    def encode_options(iterations: int = 1, **settings):
        plan.whole('iterations', iterations)
        found = sampling_options(model, **settings)
        return {**found, 'back': sampling.reverse(found['grid']), 'iterations': {str(iterations): ()}}

    def reconstruct_options(**settings):
        found = encode_options(**settings)
        ((parts, traced),) = found['sampler'].items()
        for (name, fixed), values in zip(json.loads(parts), traced, strict=True):
            if sampling.SAMPLERS[name].stochastic or 'sde' in fixed.get('algorithm_type', '') \
                    or name == 'ddim' and values['eta'] > 0:
                raise ValueError(f'{name} draws noise here, so what was inverted does not come back; use a solver that '
                                 'does not, without corrector: '
                                 + ', '.join(n for n in sampling.SOLVERS if not sampling.SAMPLERS[n].stochastic))
        return found

    def interpolate(variables, keys, batch, options):
        noise, weight = Noise(keys), options['weight']
        shape, n = (keys.shape[0], *space.shape), weight.shape[0]
        start, end = (options['grid'].sigma[0] * noise.normal(name, shape) for name in ('start', 'end'))
        x = jax.vmap(lambda w: sampling.slerp(start, end, w), out_axes=1)(weight)
        batch = {k: jnp.repeat(v, n, 0) for k, v in batch.items()}
        keys = jnp.repeat(keys, n)
        x = run(variables, Noise(keys), batch, options, x.reshape(-1, *space.shape))
        return {'image': space.show(variables, x).reshape(shape[0], n, *model.image_shape)}

    def interpolate_options(pictures: int = 8, **settings):
        plan.whole('pictures', pictures, 2)
        return {**options(**settings), 'weight': jnp.linspace(0.0, 1.0, pictures)}

    def inpaint(variables, keys, batch, options):
        noise, known = Noise(keys), space.read(variables, batch)
        wanted = (keys.shape[0], *model.image_shape[:2], 1)
        mask = batch['mask'] if 'mask' in batch else jnp.broadcast_to(options['mask'], wanted)
        solver = sampler_of(model, options)
        sampler = sampling.time_travel(sampling.chain(solver, sampling.replace_known(known, space.keep(mask))))
        x = sampling.prior(noise, known.shape, options['grid'])
        image = space.show(variables, run(variables, noise, batch, options, x, sampler=sampler))
        span = jnp.stack([mask.min(), mask.max()]).astype(jnp.float32)
        return {'image': image, 'mask_range': jnp.broadcast_to(span, (image.shape[0], 2))}

    def check_range(out):
        low, high = np.min(out['mask_range']), np.max(out['mask_range'])
        if not 0.0 <= low <= high <= 1.0:
            got = f'{low:g} .. {high:g}' if low <= high else 'values that are no numbers'
            raise ValueError(f'mask must lie within [0, 1] (1 is known), got {got}; divide a picture of 0 .. 255 by '
                             '255')

    def inpaint_options(keep='top', jump_length: int = 1, jump_n_sample: int = 1, **settings):
        found = options(**settings)
        plan.whole('jump_length', jump_length), plan.whole('jump_n_sample', jump_n_sample)
        if jump_n_sample > 1:
            walk = sampling.repaint_grid(found['grid'], jump_length, jump_n_sample)
            size = 1 << int(walk.last[0] - 1).bit_length()  # so that few lengths are compiled
            found['grid'] = sampling.repaint_grid(found['grid'], jump_length, jump_n_sample, max_steps=size)
        return {**found, 'mask': _mask(keep, model.image_shape)}

    def generate_ode(variables, keys, batch, options):
        process, shape = model.process, (keys.shape[0], *space.shape)
        _, t_max = time_range(process)
        x = process.sigma(t_max) * Noise(keys).normal('x_T', shape)
        found = sample_adaptive(denoiser(model, variables, options, batch), process, x, cond=model.condition(batch),
                                rtol=options['tol'], atol=options['tol'], max_nfe=options['max_nfe'])
        return {'image': space.show(variables, found.y), 'nfe': found.nfe, 'converged': found.converged}

    def ode_options(tol: float = 1e-4, max_nfe: int = 2000, **settings):
        unknown = set(settings) - {'guidance_scale', 'guidance_rescale', 'guidance_sigma_lo', 'guidance_sigma_hi',
                                   'threshold', 'percentile'}
        if unknown:
            raise ValueError(f'generate_ode has no steps to set: {sorted(unknown)[0]!r} is unknown; choose from tol, '
                             'max_nfe and those of guidance and threshold')
        plan.check_like('tol', tol, 1.0), plan.whole('max_nfe', max_nfe)
        if not tol > 0:
            raise ValueError(f'tol must be positive, got {tol}')
        found = sampling_options(model, **{'threshold': 'none', **settings})
        return {'guidance': found['guidance'], 'threshold': found['threshold'], 'tol': jnp.float32(tol),
                'max_nfe': jnp.int32(max_nfe)}

    sampled = {'generate': Predict(generate, options, reads),
               'edit': Predict(edit, edit_options),
               'reconstruct': Predict(reconstruct, reconstruct_options),
               'encode': Predict(encode, encode_options),
               'interpolate': Predict(interpolate, interpolate_options, reads),
               'inpaint': Predict(inpaint, inpaint_options, check=check_range)}
    sampled = {name: use._replace(defaults=model.settings, nfe=nfe if name in ('generate', 'edit') else None)
               for name, use in sampled.items()}
    return {**sampled, 'generate_ode': Predict(generate_ode, ode_options, reads, check)}
