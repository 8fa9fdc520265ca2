"""Diffusion processes x_t = alpha(t) x0 + sigma(t) eps: continuous ones, tables of betas and of sigmas.

Every function answers in kind: numpy or Python numbers give float64 numpy (grids are made so), JAX arrays give JAX
arrays (training). Nothing here is written out per kind of process beyond alpha, sigma and the inverse of
lambda(t) = log(alpha / sigma); drift, diffusion and prior follow from them. The kernels between two levels
are in `gen_jax.diffusion.posterior`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.types import Array, Level, Process

__all__ = ['vp', 'sub_vp', 've', 'cosine', 'linear_log_snr', 'edm', 'flow', 'discrete', 'discrete_ddpm', 'discrete_ve']


def _numeric(t):
    """(module, t): jax.numpy for JAX arrays, numpy in float64 for everything else."""
    return (jnp, t) if isinstance(t, jax.Array) else (np, np.asarray(t, np.float64))


def _softplus(xp, x):
    return xp.logaddexp(x, xp.zeros_like(x))


def expand(a, x: Array) -> Array:
    """A per-example number, () or [B], shaped to broadcast against x [B, ...]."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim)) if a.ndim else a


def level_at(process: Process, t) -> Level:
    """The Level of training times t, () or [B]; its index and last are 0."""
    return Level(t, process.alpha(t), process.sigma(t), jnp.int32(0), jnp.int32(0))


def half_log_snr(process: Process, t):
    """lambda(t) = log(alpha / sigma), what `Process.inverse` inverts; +inf at sigma = 0 and -inf at alpha = 0."""
    xp, t = _numeric(t)
    with np.errstate(divide='ignore'):
        return xp.log(process.alpha(t)) - xp.log(process.sigma(t))


def log_snr(process: Process, t):
    """log(alpha^2 / sigma^2) = 2 lambda(t)."""
    return 2.0 * half_log_snr(process, t)


def perturb(x0: Array, eps: Array, level: Level) -> Array:
    """x_t = alpha x0 + sigma eps for x0, eps [B, ...] and a level () or [B]."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def _derivative(fn, t: Array) -> Array:
    t = jnp.asarray(t, jnp.result_type(float))
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


def drift(process: Process, t) -> Array:
    """f(t) = d log alpha / dt of the forward SDE dx = f x dt + g dw; t is () or [B], where alpha > 0."""
    return _derivative(lambda t: jnp.log(process.alpha(t)), t)


def diffusion(process: Process, t) -> Array:
    """g(t) = sqrt(d sigma^2/dt - 2 f sigma^2) (VDM, Eq. 19); t is () or [B], where alpha > 0 and sigma > 0."""
    t = jnp.asarray(t, jnp.result_type(float))
    growth = _derivative(lambda t: process.sigma(t) ** 2, t)
    return jnp.sqrt(jnp.maximum(growth - 2.0 * drift(process, t) * process.sigma(t) ** 2, 0.0))


def prior_std(process: Process) -> float:
    """sigma at t_max: the standard deviation of x_T, where sampling and likelihoods start from N(0, sigma^2 I)."""
    return float(process.sigma(process.t_max))


def prior_log_density(process: Process, x: Array, t=None) -> Array:
    """log N(x; 0, sigma_t^2 I) in nats, summed over the dimensions: x [B, ...] -> [B]; t is t_max by default."""
    std, x = process.sigma(process.t_max if t is None else t), x.reshape(x.shape[0], -1)
    return -0.5 * jnp.sum(jnp.square(x / std), axis=1) - x.shape[1] * (jnp.log(std) + 0.5 * float(np.log(2.0 * np.pi)))


def _positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f'{name} must be positive, got {value}.')


def _increasing(low_name, low, high_name, high):
    if not low < high:
        raise ValueError(f'{low_name} must be less than {high_name}, got {low_name}={low} and {high_name}={high}.')


def _linear_beta(beta_min, beta_max, t_min):
    """(t -> log alpha, -log alpha -> t) for beta(t) = beta_min + t (beta_max - beta_min)."""
    _positive(beta_min=beta_min, beta_max=beta_max)
    if not 0.0 <= t_min < 1.0:
        raise ValueError(f't_min must lie within [0, 1), got {t_min}.')
    slope = beta_max - beta_min

    def log_alpha(t):
        return -t * (0.25 * slope * t + 0.5 * beta_min)

    def time(xp, minus_log_alpha):  # the root of a quadratic, in the form that does not cancel at t = 0
        b = 0.5 * beta_min
        return 2.0 * minus_log_alpha / (b + xp.sqrt(b * b + slope * minus_log_alpha))

    return log_alpha, time


def vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> Process:
    """Variance preserving, beta linear in t over [0, 1] (Song et al. 2021, Eq. 32-33): sigma^2 = 1 - alpha^2."""
    log_alpha, time = _linear_beta(beta_min, beta_max, t_min)

    def alpha(t):
        xp, t = _numeric(t)
        return xp.exp(log_alpha(t))

    def sigma(t):
        xp, t = _numeric(t)
        return xp.sqrt(-xp.expm1(2.0 * log_alpha(t)))

    def inverse(lam):
        xp, lam = _numeric(lam)
        return time(xp, 0.5 * _softplus(xp, -2.0 * lam))

    return Process(alpha, sigma, inverse, t_min, 1.0)


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> Process:
    """Sub-VP (Song et al. 2021, Eq. 29): alpha as in `vp`, sigma = 1 - alpha^2."""
    log_alpha, time = _linear_beta(beta_min, beta_max, t_min)

    def alpha(t):
        xp, t = _numeric(t)
        return xp.exp(log_alpha(t))

    def sigma(t):
        xp, t = _numeric(t)
        return -xp.expm1(2.0 * log_alpha(t))

    def inverse(lam):  # alpha e^-lambda = 1 - alpha^2 has the root log alpha = -asinh(e^-lambda / 2)
        xp, lam = _numeric(lam)
        return time(xp, xp.arcsinh(0.5 * xp.exp(-lam)))

    return Process(alpha, sigma, inverse, t_min, 1.0)


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5) -> Process:
    """Variance exploding (Song et al. 2021, Eq. 31): alpha = 1, sigma geometric in t over [0, 1]."""
    _positive(sigma_min=sigma_min)
    _increasing('sigma_min', sigma_min, 'sigma_max', sigma_max)
    low, span = float(np.log(sigma_min)), float(np.log(sigma_max / sigma_min))

    def sigma(t):
        xp, t = _numeric(t)
        return xp.exp(low + span * t)

    return Process(_one, sigma, lambda lam: (-lam - low) / span, t_min, 1.0)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Process:
    """EDM (Karras et al. 2022, Table 1): alpha = 1, sigma = t."""
    _positive(sigma_min=sigma_min)
    _increasing('sigma_min', sigma_min, 'sigma_max', sigma_max)

    def inverse(lam):
        xp, lam = _numeric(lam)
        return xp.exp(-lam)

    return Process(_one, lambda t: _numeric(t)[1], inverse, sigma_min, sigma_max)


def _one(t):
    xp, t = _numeric(t)
    return xp.ones_like(t)


def flow(shift: float = 1.0) -> Process:
    """Rectified flow (Liu et al. 2023): alpha = 1 - u, sigma = u with u = shift t / (1 + (shift - 1) t).

    `shift` moves the time towards noise for larger pictures (Esser et al. 2024, Eq. 23).
    """
    _positive(shift=shift)

    def alpha(t):  # 1 - u without the cancellation at t = 1
        _, t = _numeric(t)
        return (1.0 - t) / (1.0 + (shift - 1.0) * t)

    def sigma(t):
        _, t = _numeric(t)
        return shift * t / (1.0 + (shift - 1.0) * t)

    def inverse(lam):
        xp, lam = _numeric(lam)
        ratio = xp.exp(-xp.abs(lam))  # u = sigmoid(-lambda), without overflow
        u = xp.where(lam > 0, ratio, 1.0) / (1.0 + ratio)
        return u / (shift - (shift - 1.0) * u)

    return Process(alpha, sigma, inverse, 0.0, 1.0)


def cosine(log_snr_max: float = 20.0, log_snr_min: float = -20.0) -> Process:
    """alpha = cos(a), sigma = sin(a), the angle a linear in t over [0, 1] (VDM's form of Nichol & Dhariwal 2021).

    The ends stop where log(alpha^2 / sigma^2) is `log_snr_max` (t = 0) and `log_snr_min` (t = 1), so that everything
    is finite; both alpha and sigma are sines of small angles at their ends, exact in float32.
    """
    _increasing('log_snr_min', log_snr_min, 'log_snr_max', log_snr_max)
    start = float(np.arctan(np.exp(-0.5 * log_snr_max)))
    stop = float(np.arctan(np.exp(0.5 * log_snr_min)))  # distance of the last angle from pi / 2
    span = 0.5 * np.pi - start - stop

    def alpha(t):
        xp, t = _numeric(t)
        return xp.sin(stop + (1.0 - t) * span)

    def sigma(t):
        xp, t = _numeric(t)
        return xp.sin(start + t * span)

    def inverse(lam):
        xp, lam = _numeric(lam)
        return (xp.arctan(xp.exp(-lam)) - start) / span

    return Process(alpha, sigma, inverse, 0.0, 1.0)


def linear_log_snr(log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> Process:
    """Variance preserving, log(alpha^2 / sigma^2) linear in t over [0, 1] (VDM, Appendix B; Kingma et al. 2021)."""
    _increasing('log_snr_min', log_snr_min, 'log_snr_max', log_snr_max)
    span = log_snr_max - log_snr_min

    def half(t, sign):  # log of sigmoid(sign log_snr), halved
        xp, t = _numeric(t)
        return xp.exp(-0.5 * _softplus(xp, -sign * (log_snr_max - span * t)))

    def inverse(lam):
        _, lam = _numeric(lam)
        return (log_snr_max - 2.0 * lam) / span

    return Process(lambda t: half(t, 1.0), lambda t: half(t, -1.0), inverse, 0.0, 1.0)


def discrete(betas) -> Process:
    """A table of betas [T] (Ho et al. 2020): t is the index 0 .. T-1 and alpha_t^2 = prod_{i <= t} (1 - beta_i).

    Fractional t interpolates the log-SNR linearly; any t < 0 is the data (alpha = 1, sigma = 0), written t = -1.
    `Process.steps` is T. A last beta of 1 (zero terminal SNR) is allowed.

    Raises:
        ValueError: if betas is not a vector within (0, 1], or has a 1 before its end.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size < 1 or not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
        raise ValueError(f'betas must be a vector of numbers in (0, 1) (the last may be 1), got {betas}.')
    steps = betas.size
    alpha_bar = np.cumprod(1.0 - betas)
    alphas, sigmas = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    with np.errstate(divide='ignore'):
        lambdas = np.log(alphas) - np.log(sigmas)
    finite = np.maximum(lambdas, -40.0)  # an end without signal would make neighbours of it NaN

    def split(xp, t):
        # An index ends the segment below it, the one that a reverse step from it crosses. No clip of the fraction: JAX
        # halves the derivative where both sides of a clip are equal, which is at every index.
        index = xp.clip(xp.ceil(t) - 1, 0, max(steps - 2, 0)).astype(int if xp is np else jnp.int32)
        return index, xp.minimum(index + 1, steps - 1), xp.where(t < 0, 0.0, xp.where(t > steps - 1, 1.0, t - index))

    def lookup(t, table, sign, at_data):
        xp, t = _numeric(t)
        dtype = np.float64 if xp is np else jnp.result_type(t.dtype, 0.0)
        t = t.astype(dtype)
        lams, table = xp.asarray(finite, dtype), xp.asarray(table, dtype)
        low, high, frac = split(xp, t)
        lam = lams[low] + frac * (lams[high] - lams[low])
        value = xp.exp(-0.5 * _softplus(xp, sign * -2.0 * lam))
        # At integers the table itself, while the derivative stays that of the interpolation.
        exact = xp.where(frac == 0, table[low], xp.where(frac == 1, table[high], value)) - value
        value = value + (exact if xp is np else jax.lax.stop_gradient(exact))
        return xp.where(t < 0, xp.asarray(at_data, dtype), value)

    def inverse(lam):
        xp, lam = _numeric(lam)
        t = xp.interp(-lam, xp.asarray(-finite), xp.arange(steps, dtype=xp.asarray(finite).dtype))
        return xp.where(xp.isposinf(lam), -1.0, t)

    return Process(lambda t: lookup(t, alphas, 1.0, 1.0), lambda t: lookup(t, sigmas, -1.0, 0.0), inverse,
                   0.0, float(steps - 1), steps)


def _squaredcos(steps):
    """Nichol & Dhariwal 2021, Eq. 17, betas capped at 0.999."""
    u = np.arange(steps + 1) / steps
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


_SCHEDULES = {
    'linear': lambda start, end, n: np.linspace(start, end, n),
    'scaled_linear': lambda start, end, n: np.linspace(start ** 0.5, end ** 0.5, n) ** 2,
    'squaredcos_cap_v2': lambda start, end, n: _squaredcos(n),
    'sigmoid': lambda start, end, n: start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, n))),
}


def discrete_ddpm(schedule: str = 'linear', beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000,
                  zero_terminal_snr: bool = False) -> Process:
    """The named beta tables of DDPM and its successors, as a `discrete` process.

    Args:
        schedule: 'linear' (Ho et al. 2020), 'scaled_linear' (latent diffusion), 'squaredcos_cap_v2' (Nichol &
            Dhariwal 2021; ignores beta_start and beta_end) or 'sigmoid' (GeoDiff).
        steps: T, the length of the table.
        zero_terminal_snr: shift and scale alpha so that the last one is 0 (Lin et al. 2024, Algorithm 1).

    Raises:
        ValueError: unknown schedule, steps < 1, or betas out of range.
    """
    if schedule not in _SCHEDULES:
        raise ValueError(f'Unknown beta schedule {schedule!r}; choose one of {sorted(_SCHEDULES)}.')
    if steps < 1:
        raise ValueError(f'steps must be at least 1, got {steps}.')
    # Published models were trained with betas rounded to float32; near beta = 0.999 the rounding shows in alpha.
    betas = _SCHEDULES[schedule](beta_start, beta_end, steps).astype(np.float32).astype(np.float64)
    if zero_terminal_snr and steps < 2:
        raise ValueError(f'zero_terminal_snr rescales a table of at least 2 steps, got steps={steps}.')
    if zero_terminal_snr:
        alphas = np.sqrt(np.cumprod(1.0 - betas))
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        betas = 1.0 - np.concatenate([alphas[:1], alphas[1:] / alphas[:-1]]) ** 2
    return discrete(betas)


def discrete_ve(sigma_max: float = 1.0, sigma_min: float = 0.01, n: int = 10) -> Process:
    """NCSN's n sigmas in geometric progression, alpha = 1 (Song & Ermon 2019, Sec. 4.3; Song et al. 2021, Eq. 9).

    t = 0 is sigma_min and t = n - 1 is sigma_max, so that noise grows with t as in every process; the papers count from
    the other end, which the label 'descending' of a parameterisation does. Fractional t interpolates geometrically,
    and any t < 0 is the data (sigma = 0), written t = -1.

    Raises:
        ValueError: sigmas out of order or not positive, n < 2.
    """
    _positive(sigma_min=sigma_min)
    _increasing('sigma_min', sigma_min, 'sigma_max', sigma_max)
    if n < 2:
        raise ValueError(f'n must be at least 2 sigmas, got {n}.')
    low, step = float(np.log(sigma_min)), float(np.log(sigma_max / sigma_min)) / (n - 1)

    def sigma(t):
        xp, t = _numeric(t)
        return xp.where(t < 0, 0.0, xp.exp(low + step * t))

    def inverse(lam):
        xp, lam = _numeric(lam)
        return xp.where(xp.isposinf(lam), -1.0, (-lam - low) / step)

    def alpha(t):  # of a float dtype also where t is an integer
        xp, t = _numeric(t)
        return xp.ones_like(t, None if xp is np else jnp.result_type(t.dtype, 0.0))

    return Process(alpha, sigma, inverse, 0.0, float(n - 1), n)
