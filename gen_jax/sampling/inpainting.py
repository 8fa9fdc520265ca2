"""Inpainting without training: known pixels put back after every step, and RePaint, which also walks back up.

A mask is 1 where the picture is known and 0 where it is to be painted (RePaint's convention; that of Stable
Diffusion's inpainting models is the opposite).
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.posterior import transition
from gen_jax.diffusion.process import expand
from gen_jax.sampling.base import chain
from gen_jax.types import Array, Level, Point, Sampler

__all__ = ['check_mask', 'replace_known', 'time_travel', 'repaint', 'repaint_grid']


def check_mask(shape: tuple[int, ...], mask) -> None:
    """Refuses a mask that does not fit pictures of that shape [B, ...], or leaves [0, 1] (a traced one is not read).

    Raises:
        ValueError: axes that neither match nor are 1; numbers outside [0, 1], or NaN.
    """
    if jnp.ndim(mask) != len(shape) or any(m not in (1, n) for m, n in zip(jnp.shape(mask), shape, strict=True)):
        raise ValueError(f'mask has shape {jnp.shape(mask)}, which does not fit pictures of shape {tuple(shape)}: '
                         'each axis must be the same or 1, for instance [1, H, W, 1].')
    if not isinstance(mask, jax.core.Tracer):
        values = np.asarray(mask, np.float32)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f'mask must lie within [0, 1] (1 is known), got {values.min()} .. {values.max()}; '
                             'divide a picture of 0 .. 255 by 255.')


def replace_known(known: Array, mask: Array, eps: Array | None = None) -> Sampler:
    """Puts known pixels, noised to the level of the point, in place of the sampled ones (Song et al. 2021, App. I.2).

    For `chain(solver, replace_known(known, mask))`: at every row x = mask (alpha known + sigma z) + (1 - mask) x, and
    at the grid's last row the known pixels themselves, exactly. Calls no network.

    Args:
        known: clean pictures [B, ...], in the model's range; values under mask 0 are not read (but must be finite).
        mask: 1 is known; each axis that of `known` or 1. Values between blend linearly, which feathers an edge.
        eps: noise [B, ...] for the known pixels at all levels; None draws anew at each.

    Raises:
        ValueError: a mask of the wrong shape or outside [0, 1]; at trace time, pictures not shaped like x.
    """
    check_mask(jnp.shape(known), mask)

    def step(noise, denoise, point, s, state):
        del denoise
        x = point.x
        if jnp.shape(known) != x.shape:
            raise ValueError(f'known pictures have shape {jnp.shape(known)}, the samples {x.shape}; they must be '
                             'equal.')
        z = noise.normal('known', x) if eps is None else eps
        noisy = expand(s.alpha, x) * known + expand(s.sigma, x) * z
        here = jnp.where(s.index >= s.last, known, noisy)
        weight = jnp.asarray(mask, x.dtype)
        return Point((weight * here + (1.0 - weight) * x).astype(x.dtype), s, point.aux), state

    return Sampler(lambda point: (), step)


def time_travel(sampler: Sampler) -> Sampler:
    """A sampler for grids that go up and down: where the target is noisier than the point, noise is added.

    The step up draws from the forward kernel q(x_s | x_t) and calls no network; after it the inner sampler starts
    afresh (multistep history is of another path). Every other step is the inner sampler's.
    """

    def step(noise, denoise, point, s, state):
        def up(point, state):
            scale, std = transition(point.level, s)
            x = expand(scale, point.x) * point.x + expand(std, point.x) * noise.normal('up', point.x)
            point = Point(x.astype(point.x.dtype), s, point.aux)
            return point, jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), sampler.init(point), state)

        noisier = s.sigma * point.level.alpha > point.level.sigma * s.alpha
        return jax.lax.cond(noisier, up, lambda point, state: sampler.step(noise, denoise, point, s, state),
                            point, state)

    return Sampler(sampler.init, step)


def repaint(solver: Sampler, known: Array, mask: Array) -> Sampler:
    """RePaint (Lugmayr et al. 2022, Algorithm 1), to be walked along a `repaint_grid`.

    Each row down is a step of the solver, then `replace_known`; each row up noises the whole picture, so that the
    next steps down can harmonise what is known with what was painted. The paper's solver is `ddpm()`.

    Args and errors as in `replace_known`.
    """
    return time_travel(chain(solver, replace_known(known, mask)))


def _visits(steps: int, jump_length: int, jump_n_sample: int, first: int) -> np.ndarray:
    """Rows in the order of RePaint's walk: from row steps - first - j, j a multiple of jump_length, the walk goes up
    jump_length rows, jump_n_sample - 1 times, and comes down again."""
    left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_n_sample - 1)
    t, walk = steps, []
    while t > 0:
        t -= 1
        walk.append(t)
        if left.get(t, 0):
            left[t] -= 1
            for _ in range(jump_length):
                t += 1
                walk.append(t)
    return steps - first - np.array(walk)


def repaint_grid(grid: Level, jump_length: int = 10, jump_n_sample: int = 10, max_steps: int | None = None,
                 compat: bool = False) -> Level:
    """The up-and-down walk of RePaint over the rows of a grid (Lugmayr et al. 2022, Sec. 4.2 and Appendix B).

    Args:
        grid: of `gen_jax.sampling.grid`, rows [N + 1].
        jump_length: rows that a jump goes up (j in the paper), 1 .. steps - 1.
        jump_n_sample: how often each stretch is walked (r in the paper); 1 never jumps.
        max_steps: the padded length of the result; None: as long as it is.
        compat: diffusers' RePaintScheduler jumps one row later than the paper's code, the last time from the data
            itself. False: jumps start from the rows of the paper's code.

    Raises:
        ValueError: a number below 1, a jump as long as the grid, or a walk longer than max_steps.
    """
    rows = Level(*(np.asarray(leaf) for leaf in grid))
    steps = int(rows.last[0])
    for name, value in (('jump_length', jump_length), ('jump_n_sample', jump_n_sample)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f'{name} must be an integer of at least 1, got {value!r}.')
    if jump_length >= steps:
        raise ValueError(f'jump_length={jump_length} must be less than the {steps} steps of the grid; take more '
                         'steps or shorter jumps.')
    if compat:
        visits = np.append(0, _visits(steps, jump_length, jump_n_sample, 0))
    else:
        visits = np.append(_visits(steps, jump_length, jump_n_sample, 1), steps)
    length = len(visits) - 1
    max_steps = length if max_steps is None else max_steps
    if length > max_steps:
        raise ValueError(f'the walk takes {length} steps, more than max_steps={max_steps}; raise max_steps.')
    visits = np.pad(visits, (0, max_steps - length), mode='edge')
    index = np.arange(max_steps + 1, dtype=np.int32)
    return Level(rows.t[visits], rows.alpha[visits], rows.sigma[visits], index, np.full_like(index, length))
