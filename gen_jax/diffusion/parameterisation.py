"""What a network's raw output means: the noise, the image, the velocity ...

Each parameterisation converts the raw output into a `Denoised`, which holds both x0 and eps, and says what the loss
regresses, in the network's own space. With x = alpha x0 + sigma eps the conversions are exact inverses of the targets
for any alpha and sigma, not only where alpha^2 + sigma^2 = 1. Where a conversion would divide by zero (eps at
alpha = 0, x0 at sigma = 0), x says nothing about the missing half and it is 0, the mean of standardised data or noise.

All formulas run in float32 (or better) whatever the network's dtype.
"""

from collections.abc import Callable

import jax.numpy as jnp

from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Parameterisation, Process

__all__ = ['eps', 'x0', 'v', 'score', 'flow', 'edm', 'learned_range']


def at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def split_raw(raw: Array, x: Array, channels: int = 1) -> tuple[Array, Array | None]:
    """A network's raw output -> (prediction like x, learned variance like x or None), in float32 at least.

    Args:
        channels: `Parameterisation.channels`, 2 if the last axis holds both one after the other.

    Raises:
        ValueError: an output of another shape.
    """
    if raw.shape != (*x.shape[:-1], channels * x.shape[-1]):
        raise ValueError(f'The network returned {raw.shape} for an input of {x.shape}; ' + (
            'they must be equal.' if channels == 1 else
            f'with a learned variance it must have {channels * x.shape[-1]} channels (out_channels).'))
    raw = at_least_float32(raw)
    return (raw, None) if channels == 1 else (raw[..., :x.shape[-1]], raw[..., x.shape[-1]:])


def _divide(a, b):
    """a / b, and 0 where b is 0, in the gradient too."""
    zero = b == 0
    return jnp.where(zero, 0.0, a / jnp.where(zero, 1.0, b))


def from_x0(x: Array, x0: Array, level: Level) -> Denoised:
    """The Denoised whose image is x0 and whose noise agrees with x."""
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    return Denoised(x0, _divide(x - alpha * x0, sigma))


def from_eps(x: Array, eps: Array, level: Level) -> Denoised:
    """The Denoised whose noise is eps and whose image agrees with x."""
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    return Denoised(_divide(x - sigma * eps, alpha), eps)


def _scaled_t(level: Level, process: Process, scale: float | None) -> Array:
    if scale is None:
        scale = 1000.0 if process.steps is None and process.t_max <= 1.0 else 1.0
    return jnp.asarray(level.t) * scale


def _descending(level: Level, process: Process, scale: float | None) -> Array:
    if process.steps is None:
        raise ValueError("label='descending' counts the rows of a table, but this process is continuous; "
                         "use 't' or 'sigma'.")
    return jnp.clip(jnp.round(process.steps - 1.0 - level.t), 0, process.steps - 1)


LABELS = {'t': _scaled_t, 'sigma': lambda level, process, scale: jnp.asarray(level.sigma), 'descending': _descending}


def _label(name: str, label_scale: float | None):
    if name not in LABELS:
        raise ValueError(f'Unknown label {name!r}; choose one of {sorted(LABELS)}.')
    if label_scale is not None and name != 't':
        raise ValueError(f"label_scale={label_scale} scales the label 't', not {name!r}; leave it out.")
    return lambda level, process: LABELS[name](level, process, label_scale)


def network_output(network: Callable[..., Array], label: Callable, c_in: Callable, process: Process, x: Array,
                   level: Level, cond: Cond) -> Array:
    """The raw output at x [B, ...]: the network is told c_in x and label(level), and answers in any dtype."""
    labels = jnp.broadcast_to(label(level, process), x.shape[:1])
    return network(expand(c_in(level), x) * x, labels, cond)


def _make(space, convert, target, label, c_in=lambda level: 1.0) -> Parameterisation:

    def denoiser(network: Callable[..., Array], process: Process) -> DenoiseFn:
        def denoise(x: Array, level: Level, cond: Cond) -> Denoised:
            x = at_least_float32(x)
            raw = network_output(network, label, c_in, process, x, level, cond)
            return convert(x, split_raw(raw, x)[0], level)

        return denoise

    def checked_target(x0: Array, eps: Array, level: Level) -> Array:
        return target(x0, eps, expand(level.alpha, x0), expand(level.sigma, x0))

    space = space if isinstance(space, tuple) else (space,)
    return Parameterisation(denoiser, checked_target, label, c_in, space=space)


def eps(label_scale: float | None = None, label: str = 't') -> Parameterisation:
    """The network predicts the noise (Ho et al. 2020, Eq. 14).

    Args:
        label_scale: the network is told label_scale * t. None means 1000 where time runs over [0, 1], and 1 for the
            indices of a discrete table or any other unit of time. (Song et al. 2021 trained VP with 999.)
        label: 't'; 'sigma', which NCSN++ is told (Song et al. 2021, Appendix G); or 'descending', the row of a table
            counted from its greatest noise as NCSN and NCSNv2 do: steps - 1 - t, an integer.

    Raises:
        ValueError: unknown label, label_scale for another label than 't'; at trace time, 'descending' without a table.
    """
    return _make('eps', from_eps, lambda x0, eps, alpha, sigma: eps, _label(label, label_scale))


def x0(label_scale: float | None = None, label: str = 't') -> Parameterisation:
    """The network predicts the clean image. `label_scale` and `label` as in `eps`."""
    return _make('x0', from_x0, lambda x0, eps, alpha, sigma: x0, _label(label, label_scale))


def v(label_scale: float | None = None, label: str = 't') -> Parameterisation:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, Sec. 4). `label_scale` and `label` as in `eps`."""

    def convert(x, raw, level):
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        norm = alpha ** 2 + sigma ** 2  # 1 for variance preserving processes
        return Denoised((alpha * x - sigma * raw) / norm, (sigma * x + alpha * raw) / norm)

    return _make('v', convert, lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0, _label(label, label_scale))


def score(label_scale: float | None = None, label: str = 't') -> Parameterisation:
    """The gradient of log p_t(x), -eps / sigma (Song et al. 2021, Eq. 7); the target is 0 at sigma = 0.

    This is the parameterisation of networks that divide their last layer by sigma (NCSNv2, NCSN++); what stands before
    the division is -eps. `label_scale` and `label` as in `eps`.
    """

    def convert(x, raw, level):
        return from_eps(x, -expand(level.sigma, x) * raw, level)

    return _make('score', convert, lambda x0, eps, alpha, sigma: -_divide(eps, sigma), _label(label, label_scale))


def flow(label_scale: float | None = None, label: str = 't') -> Parameterisation:
    """The velocity eps - x0 of rectified flow, dx/dt where alpha = 1 - t and sigma = t (Liu et al. 2023, Eq. 1)."""

    def convert(x, raw, level):
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        return Denoised((x - sigma * raw) / (alpha + sigma), (x + alpha * raw) / (alpha + sigma))

    return _make('flow', convert, lambda x0, eps, alpha, sigma: eps - x0, _label(label, label_scale))


def edm(sigma_data: float = 0.5) -> Parameterisation:
    """EDM's preconditioning (Karras et al. 2022, Table 1), for any process.

    Written for x / alpha at noise sigma / alpha and multiplied out, so that nothing divides by alpha: with
    n^2 = sigma^2 + alpha^2 sigma_data^2, c_skip = alpha sigma_data^2 / n^2, c_out = sigma sigma_data / n, c_in = 1 / n
    and c_noise = log(sigma / alpha) / 4. The network's own target has unit variance, so the weighting of the paper
    is `weighting.simple` here.

    Raises:
        ValueError: sigma_data <= 0.
    """
    if not sigma_data > 0:
        raise ValueError(f'sigma_data must be positive, got {sigma_data}.')

    def n(alpha, sigma):
        return jnp.sqrt(sigma ** 2 + (alpha * sigma_data) ** 2)

    def convert(x, raw, level):
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        norm = n(alpha, sigma)
        x0 = alpha * (sigma_data / norm) ** 2 * x + sigma * sigma_data / norm * raw
        # (x - alpha x0) / sigma, divided out by hand so that sigma = 0 is no exception
        return Denoised(x0, sigma / norm ** 2 * x - alpha * sigma_data / norm * raw)

    def target(x0, eps, alpha, sigma):
        return (sigma * x0 - alpha * sigma_data ** 2 * eps) / (sigma_data * n(alpha, sigma))

    def label(level, process):
        tiny = jnp.finfo(jnp.float32).tiny
        alpha, sigma = jnp.maximum(level.alpha, tiny), jnp.maximum(level.sigma, tiny)
        return 0.25 * (jnp.log(sigma) - jnp.log(alpha))

    return _make(('edm', sigma_data), convert, target, label, lambda level: 1.0 / n(level.alpha, level.sigma))


def learned_range(base: Parameterisation) -> Parameterisation:
    """`base` with a learned variance of the reverse step, of iDDPM and ADM (Nichol & Dhariwal 2021, Eq. 15).

    The network returns twice the channels: first what `base` reads, then r, which becomes `Denoised.log_var`
    (r + 1) / 2. Train it with `hybrid_loss` or `vlb_loss`; `denoising_loss` trains the first half only. Published
    checkpoints are `learned_range(eps())`.

    Raises:
        ValueError: a base that has a variance already.
    """
    if base.channels != 1:
        raise ValueError('learned_range: the base parameterisation has a learned variance already.')

    def denoiser(network: Callable[..., Array], process: Process) -> DenoiseFn:
        def denoise(x: Array, level: Level, cond: Cond) -> Denoised:
            variance = []

            def first_half(x_in: Array, label: Array, cond: Cond) -> Array:
                prediction, rest = split_raw(network(x_in, label, cond), x, channels=2)
                variance.append(rest)
                return prediction

            d = base.denoiser(first_half, process)(x, level, cond)
            return d._replace(log_var=0.5 * (variance[0] + 1.0))

        return denoise

    return base._replace(denoiser=denoiser, channels=2)
