"""Measures every row of `gen_jax.sampling.SAMPLERS` and writes the table of docs/samplers.md.

    python -m experiments.samplers_table            # two minutes on one core; --check only compares the names

Orders are slopes of the distance to the exact probability-flow ODE of a Gaussian, in float64, between two finite
levels of the VP process, from 128 to 256 steps; calls are counted; errors against diffusers are of whole samples of
published scheduler configs with a smooth network (tests/golden/compat.npz).
"""

import argparse
import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import diffusion, sampling
from gen_jax.sampling import SAMPLERS, chain, from_diffusers, make_clip, make_sampler, no_predictor, retarget, sample
from gen_jax.types import Denoised, Level, Point, Sampler

ROOT = Path(__file__).resolve().parent.parent
PAGE, GOLDEN = ROOT / 'docs' / 'samplers.md', ROOT / 'tests' / 'golden' / 'compat.npz'
BEGIN, END = '<!-- table: python -m experiments.samplers_table -->', '<!-- end of table -->'
STEPS, EARLIER = (128, 256), 4
PROCESS = diffusion.vp()
# one Gaussian, axis-aligned: solvers treat all directions alike
MEAN, VARIANCE = np.array([0.5, -0.3, 0.1]), np.array([0.04, 0.5, 1.4])
# makers that the configs of compat.npz do not name, but whose numbers are theirs
SAME = {'plms': 'Stable Diffusion 1', 'dpmpp_2m': 'PixArt', 'dpmpp_2m_sde': 'SDE Karras'}
# the reference's third order is not the paper's: `dpm_solver_multistep(3, compat=True)` is what agrees with it
OTHERWISE = {'dpmpp_3m': 'by step (compat)'}


class Draws:
    """Fixed noise, for counting calls."""

    def at(self, i):
        return self

    def normal(self, purpose, x):
        return jnp.ones(x if isinstance(x, tuple) else x.shape)

    def uniform(self, purpose, shape=()):
        return jnp.full((2, *shape), 0.5)


def denoise(x, level, cond=None):
    """E[x0 | x] and E[eps | x] of the Gaussian."""
    away = (x - level.alpha * MEAN) / (level.alpha ** 2 * VARIANCE + level.sigma ** 2)
    return Denoised(MEAN + level.alpha * VARIANCE * away, level.sigma * away)


def flow(x, start, stop):
    """The probability-flow ODE, solved exactly: x - alpha m grows with its standard deviation."""
    std = [jnp.sqrt(level.alpha ** 2 * VARIANCE + level.sigma ** 2) for level in (start, stop)]
    return stop.alpha * MEAN + (x - start.alpha * MEAN) * std[1] / std[0]


def make(name):
    """The sampler of a row with its defaults; what has none gets the plainest."""
    given = {'classifier_shift': {'grad_log_prob': lambda x, level: jnp.zeros_like(x)},
             'replace_known': {'known': jnp.zeros((2, 3)), 'mask': jnp.ones((2, 3))},
             'repaint': {'solver': sampling.ddpm(), 'known': jnp.zeros((2, 3)), 'mask': jnp.ones((2, 3))}}
    maker = getattr(sampling, name)
    process = {'process': PROCESS} if 'process' in inspect.signature(maker).parameters else {}
    return maker(**process, **given.get(name, {}))


def rows_between(start, stop, steps, earlier=EARLIER):
    """float64 rows evenly spaced in t, with `earlier` more before the start, which only a history sees."""
    t = start + (stop - start) / steps * np.arange(-earlier, steps + 1)
    t = np.pad(t, (0, STEPS[-1] - steps), mode='edge')
    index = np.arange(-earlier, STEPS[-1] + 1, dtype=np.int32)
    return Level(t, PROCESS.alpha(t), PROCESS.sigma(t), index, np.full_like(index, steps))


def orders(name):
    """(order with an exact history, order with the default start)."""
    solver = make(name)
    span = (0.1, 0.8) if name == 'ddim_inverse' else (0.8, 0.1)
    at = lambda rows, i: jax.tree.map(lambda a: a[i], rows)  # noqa: E731

    def error(rows, x, primed):
        points = [Point(flow(x, at(rows, 0), at(rows, i)), at(rows, i)) for i in range(EARLIER + 1)]
        informed = sampling.prime(solver, denoise, points[:EARLIER])
        either = Sampler(lambda point: jax.tree.map(lambda a, b: jnp.where(primed, a, b), informed.init(point),
                                                    solver.init(point)), solver.step)
        end = sample(Draws(), denoise, either, points[-1].x, jax.tree.map(lambda a: a[EARLIER:], rows)).x
        return jnp.abs(end - flow(x, at(rows, 0), at(rows, -1))).max()

    with jax.enable_x64(True):
        run = jax.jit(error)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
        errors = [[run(rows_between(*span, steps), x, primed) for primed in (True, False)] for steps in STEPS]
        return tuple(np.log2(np.asarray(errors[0]) / np.asarray(errors[1])))


def calls(name):
    """Calls of the denoiser per step, away from the ends: run step by step, and counted."""
    row, counts = SAMPLERS[name], []
    sampler = make(name) if row.kind != 'corrector' and name != 'replace_known' else chain(make(name), no_predictor())
    for steps in (8, 14):
        count = 0

        def counted(x, level, cond=None):
            nonlocal count
            count += 1
            return denoise(x, level)

        rows = jax.tree.map(lambda a: np.asarray(a, np.float32 if a.dtype == np.float64 else np.int32),
                            rows_between(0.8, 0.1, steps, earlier=0))
        rows = jax.tree.map(lambda a, n=steps: a[:n + 1], rows)
        if name == 'ddim_inverse':
            rows = sampling.reverse(rows)
        with jax.disable_jit():
            sample(Draws(), counted, sampler, jnp.ones((2, 3)), rows)
        counts.append(count)
    return (counts[1] - counts[0]) / 6


def network(scale):
    """As in tests/golden/make_compat.py."""

    def network(x, label, cond):
        u = scale * label.reshape(-1, *[1] * (x.ndim - 1))
        return 0.8 * jnp.sin(1.3 * x + u) + 0.2 * jnp.cos(3.0 * u) * x

    return network


def errors_against_diffusers():
    """Sampler -> the largest max|err| / max|x| over the configs that use it."""
    with np.load(GOLDEN) as file:
        golden = dict(file)
    table, steps, worst = jnp.asarray(golden['noise']), int(golden['steps']), {}

    class Recorded(Draws):
        def __init__(self, i=0):
            self.i = i

        def at(self, i):
            return Recorded(i)

        def normal(self, purpose, x):
            return table[self.i]

    for case, want in zip(json.loads(str(golden['cases'])), golden['xs'], strict=True):
        config = dict(case['config'])
        mu = config.pop('mu', None)
        read = from_diffusers({'_class_name': case['class'], **config}, compat=True)
        rows = read.grid(steps, mu=mu)
        clipped = make_clip(read)(read.parameterisation.denoiser(network(case['scale']), read.process))
        start = golden['z'] * (1.0 if 'Inverse' in case['class'] else np.float32(read.init_noise_sigma(rows)))
        solvers = {read.sampler['name']: make_sampler(read)}
        solvers.update({name: make(name) for name, title in SAME.items() if title == case['title']})
        for name, solver in solvers.items():
            solver = retarget(solver, read.targets(steps))
            x = jax.jit(lambda x, s=solver, d=clipped, rows=rows: sample(Recorded(), d, s, x, rows).x)(start)
            worst[name] = max(worst.get(name, 0.0), float(np.abs(x - want).max() / np.abs(want).max()))
    return worst


def table():
    """The Markdown table, one line per row of SAMPLERS."""
    lines = ['| sampler | kind | order | measured | calls per step | stochastic | reference | compared with | '
             'largest error |', '|---|---|---|---|---|---|---|---|---|']
    errors = errors_against_diffusers()
    for name, row in SAMPLERS.items():
        measured = '-'
        if row.order is not None:
            primed, plain = orders(name)
            measured = f'{primed:.2f}' + (f' ({plain:.2f})' if abs(primed - plain) > 0.05 else '')
        counted = calls(name)
        assert abs(counted - row.calls) < 1e-6, f'{name} claims {row.calls} calls per step and makes {counted}'
        error = f'{errors[name]:.0e}' if name in errors else OTHERWISE.get(name, 'by step' if row.parity else '-')
        parity = f'`{row.parity}`' if row.parity else '-'
        lines.append(f'| `{name}` | {row.kind} | {row.order or "-"} | {measured} | {counted:g} | '
                     f'{"yes" if row.stochastic else "no"} | {row.reference} | {parity} | {error} |')
        print(lines[-1], flush=True)
    return '\n'.join(lines)


def rows_of(page: str) -> list[str]:
    """The names of the samplers in the table of a page."""
    return re.findall(r'^\| `(\w+)` \|', page[page.index(BEGIN):page.index(END)], re.M)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='only compare the names in the page with SAMPLERS')
    check = parser.parse_args().check
    page = PAGE.read_text()
    if not check:
        head, tail = page[:page.index(BEGIN)], page[page.index(END):]
        page = f'{head}{BEGIN}\n\n{table()}\n\n{tail}'
        PAGE.write_text(page)
    if rows_of(page) != list(SAMPLERS):
        raise SystemExit(f'{PAGE} does not name {list(SAMPLERS)}; run python -m experiments.samplers_table')


if __name__ == '__main__':
    main()
