"""Grids from grids: a later start (img2img) and the way back (inversion), on the host.

Both keep the padded shape, so a compiled sampler takes the edited grid as it took the first.
"""

import numpy as np

from gen_jax.types import Level

__all__ = ['reverse', 'truncate', 'with_rows']


def _host(grid: Level) -> tuple[Level, int]:
    """The grid in numpy, and how many steps of it are real."""
    grid = Level(*(np.asarray(leaf) for leaf in grid))
    if grid.alpha.ndim != 1 or grid.alpha.shape[0] < 2:
        raise ValueError(f'A grid has rows [N + 1] with N >= 1, got alpha of shape {grid.alpha.shape}.')
    return grid, int(grid.last[0])


def with_rows(grid: Level, take) -> Level:
    """The rows `take`, padded by their last to the length of `grid`, and numbered from 0."""
    index = np.concatenate([take, np.full(grid.t.shape[0] - len(take), take[-1])])
    return Level(grid.t[index], grid.alpha[index], grid.sigma[index], grid.index,
                 np.full_like(grid.last, len(take) - 1))


def truncate(grid: Level, strength: float) -> Level:
    """The last floor(strength * steps) steps of a grid: SDEdit's later start (Meng et al. 2022, Sec. 3).

    Row 0 of the result is where to start from: x = alpha[0] x0 + sigma[0] z. Rows are numbered from 0 again, and
    `last` is smaller; strength 1 is the grid itself.

    Args:
        grid: of `gen_jax.sampling.grid`, rows [max_steps + 1].
        strength: share of the steps to walk, in (0, 1]; a Python number.

    Raises:
        ValueError: a strength outside (0, 1], or one that leaves no step.
    """
    grid, steps = _host(grid)
    if not 0 < strength <= 1:
        raise ValueError(f'strength must lie within (0, 1], got {strength}.')
    kept = int(np.floor(strength * steps + 1e-6))  # 0.58 * 50 is just below 29
    if kept < 1:
        raise ValueError(f'strength={strength} leaves none of the {steps} steps; take a strength of at least '
                         f'{1 / steps:.3g}, or more steps.')
    return with_rows(grid, np.arange(steps - kept, steps + 1))


def reverse(grid: Level, from_data: bool = True) -> Level:
    """The grid walked from data to noise: with a deterministic solver this is inversion (Song et al. 2021, Sec. 4.3).

    Args:
        grid: of `gen_jax.sampling.grid`, rows [max_steps + 1].
        from_data: True starts at the grid's last row. Where that is the data itself (sigma = 0), a level that no
            network was trained at, it is labelled with the time of the least noisy level. False leaves that row out:
            the picture is taken to stand at the least noisy level already (networks told log sigma, such as EDM's).

    Raises:
        ValueError: from_data=False on a grid of one step.
    """
    grid, steps = _host(grid)
    if not from_data:
        if steps < 2:
            raise ValueError('reverse(from_data=False) needs a grid of at least 2 steps, got 1.')
        return with_rows(grid, np.arange(steps)[::-1])
    back = with_rows(grid, np.arange(steps + 1)[::-1])
    if back.sigma[0] == 0:
        back.t[0] = back.t[1]
    return back
