"""Every sampler of kind 'editing': jit, vmap, bfloat16, shards; other grids, pictures and scales, compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gen_jax import diffusion
from gen_jax.sampling import (
    chain,
    classifier_shift,
    ddim,
    ddim_inverse,
    grid,
    heun,
    repaint,
    repaint_grid,
    replace_known,
    reverse,
    sample,
    time_travel,
)
from gen_jax.sampling.table import SAMPLERS
from tests.oracles import StepPlayback, gaussian_mixture

MIXTURE = gaussian_mixture(3, dim=3)
B, N = 8, 40
RNG = np.random.default_rng(0)
X, KNOWN = RNG.standard_normal((2, B, 3)).astype(np.float32)
TABLE = RNG.standard_normal((N, B, 3)).astype(np.float32)
MASK = np.array([[1.0, 0.5, 0.0]], np.float32)
ROWS = {  # name -> (sampler of known, mask, scale; grid -> the grid that it walks)
    'classifier_shift': (lambda known, mask, w: classifier_shift(lambda x, at: known - x, w), lambda rows: rows),
    'replace_known': (lambda known, mask, w: chain(heun(), replace_known(known, w / 10 * mask)), lambda rows: rows),
    'repaint': (lambda known, mask, w: repaint(ddim(w / 10), known, mask),
                lambda rows: repaint_grid(rows, 2, 3, max_steps=N)),
    'ddim_inverse': (lambda known, mask, w: ddim_inverse(2), reverse),
    'ddim_inverse compat': (lambda known, mask, w: ddim_inverse(compat=True), reverse),
    'time_travel': (lambda known, mask, w: time_travel(classifier_shift(lambda x, at: known - x, w)),
                    lambda rows: repaint_grid(rows, 1, 2, max_steps=N)),
}
COLLECTIVES = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')


def test_every_editing_sampler_has_a_row():
    assert {name for name, row in SAMPLERS.items() if row.kind == 'editing'} <= set(ROWS)


@pytest.mark.parametrize('name', ROWS)
def test_all(name):
    make, walk = ROWS[name]
    traces = []

    def run(x, known, table, rows, mask, w):
        traces.append(1)
        return sample(StepPlayback(table), MIXTURE.denoise, make(known, mask, w), x, rows).x

    grids = [walk(grid(p, n, max_steps=N)) for p, n in ((diffusion.vp(), 5), (diffusion.flow(), 7))]
    compiled = jax.jit(run)
    args = (TABLE, grids[0], MASK, np.float32(2.0))
    x = compiled(X, KNOWN, *args)
    changed = [compiled(X, KNOWN, TABLE, grids[1], MASK, np.float32(2.0)),
               compiled(X, KNOWN[::-1], TABLE, grids[0], 1 - MASK, np.float32(5.0))]
    assert len(traces) == 1
    assert np.isfinite(x).all() and np.isfinite(changed).all()
    assert np.abs(changed[0] - x).max() > 1e-2 and ('inverse' in name or np.abs(changed[1] - x).max() > 1e-2)

    half = jnp.stack([X, X[::-1]]).astype(jnp.bfloat16)
    mapped = jax.jit(jax.vmap(run, (0, None, None, None, None, None)))(half, KNOWN, *args)
    assert mapped.dtype == jnp.float32
    for one, start in zip(mapped, half, strict=True):
        np.testing.assert_allclose(one, compiled(start.astype(jnp.float32), KNOWN, *args), rtol=1e-4, atol=1e-4)

    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    spec = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), ('data',), (None, 'data'), (), (), ())]
    shards = jax.jit(run, in_shardings=tuple(spec), out_shardings=spec[0]).lower(X, KNOWN, *args).compile()
    assert not [c for c in COLLECTIVES if c in shards.as_text()]
    np.testing.assert_allclose(shards(*jax.device_put((X, KNOWN, *args), tuple(spec))), x, rtol=1e-4, atol=1e-4)
