"""One table, all members: every row of SAMPLERS under jit, vmap, bfloat16 starts, chain and changed grids."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion, sampling
from gen_jax.sampling import CORRECTORS, SAMPLERS, SOLVERS, chain, euler, grid, replace_known, sample
from gen_jax.systems import plan
from tests.oracles import Playback, gaussian

ONE = gaussian(dim=3)
PROCESS = diffusion.vp()
TABLE = np.random.default_rng(0).standard_normal((40, 2, 3)).astype(np.float32)
COLLECTIVES = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute')


class Cycle(Playback):
    """Recorded noise that begins again at its end, for inner loops longer than it."""

    def at(self, i):
        return Cycle(self.table, i % len(self.table))


def make(name):
    maker = getattr(sampling, name)
    sampler = maker(**({'process': PROCESS} if 'process' in inspect.signature(maker).parameters else {}))
    return sampler if SAMPLERS[name].kind == 'solver' else chain(sampler, euler())


@pytest.mark.parametrize('name', [*SOLVERS, *CORRECTORS])
def test_jit_vmap_bfloat16_and_chain(name):
    """In one program: a batch of two vmapped problems equals the two alone; bfloat16 starts come out in float32; a
    chained replacement is obeyed; new grids compile nothing."""
    traces = []
    known = jnp.full((2, 3), 0.5)

    @jax.jit
    def run(x, rows):
        traces.append(1)

        def one(x):
            sampler = chain(make(name), replace_known(known, jnp.asarray([[1.0, 0.0, 0.0]])))
            return sample(Cycle(jnp.asarray(TABLE)), ONE.denoise, sampler, x, rows).x

        return jax.vmap(one)(x), jnp.stack([one(x[0]), one(x[1])])

    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 3)), jnp.bfloat16)
    ends = []
    for steps, spacing in ((6, 'uniform_t'), (8, 'karras'), (6, 'uniform_t')):
        batched, alone = run(x, grid(PROCESS, steps, spacing, max_steps=8))
        assert batched.dtype == jnp.float32
        np.testing.assert_allclose(batched, alone, atol=2e-5)
        assert np.isfinite(batched).all() and (np.asarray(batched)[..., 0] == 0.5).all()
        ends.append(np.asarray(batched))
    np.testing.assert_array_equal(ends[0], ends[2])
    assert np.abs(ends[0] - ends[1]).max() > 1e-3 or name == 'no_predictor', 'the grid is not read'
    assert len(traces) == 1


def test_rows_are_complete():
    """Every row has its function in gen_jax.sampling, which says what it reads or is; and its claims are sane."""
    for name, row in SAMPLERS.items():
        assert name in sampling.__all__ and getattr(sampling, name).__doc__, name
        assert row.kind in ('solver', 'corrector', 'editing') and row.reference, name
        assert row.stochastic or row.order or row.calls == 0, name
    for name in (*SOLVERS, *CORRECTORS):  # a config can set every argument of it
        required = [p.name for p in inspect.signature(getattr(sampling, name)).parameters.values()
                    if p.default is p.empty and p.name != 'process']
        assert not required, (name, required)
        assert all(isinstance(v, (bool, int, float, str, tuple, type(None))) for v in
                   plan.keywords(getattr(sampling, name)).values()), name
