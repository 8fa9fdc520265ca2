"""The scan: padding, recompilation, batch independence, jit/vmap/pmap/sharding, chain, repeat, trace, carry."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gen_jax import diffusion
from gen_jax.diffusion import guidance, parameterisation
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling import chain, ddim, ddpm, grid, heun, prior, repeat, sample
from gen_jax.types import Point, Sampler
from tests.oracles import Playback

TABLE, VP = diffusion.discrete_ddpm(), diffusion.vp()
B, SHAPE = 8, (3, 3, 1)


def network(x, label, cond):
    return 0.3 * jnp.tanh(x + cond['label'][:, None, None, None]) * jnp.cos(label / 100)[:, None, None, None]


DENOISE = parameterisation.v().denoiser(network, TABLE)


def keys(n=B):
    return example_keys(0, np.arange(n))


def generate(keys, label, options):
    """A whole predict: prior, guidance, ancestral sampling with eta."""
    noise = Noise(keys)
    denoise = guidance.clip_x0()(guidance.classifier_free(options['scale'], {'label': -1.0})(DENOISE))
    x_T = prior(noise, (keys.shape[0], *SHAPE), options['grid'])
    return sample(noise, denoise, ddim(options['eta']), x_T, options['grid'], {'label': label}).x


def options(steps=4, scale=2.0, eta=0.7, spacing='leading'):
    return {'grid': grid(TABLE, steps, spacing, max_steps=6), 'scale': np.float32(scale), 'eta': np.float32(eta)}


LABEL = jnp.arange(B, dtype=jnp.float32)
TABLE_OF_NOISE = jnp.asarray(np.random.default_rng(0).standard_normal((10, B, *SHAPE)), jnp.float32)


def test_settings_do_not_recompile_and_matter():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(generate, n=1))
    outs = [run(keys(), LABEL, options(**o)) for o in (
        {}, {'steps': 6}, {'steps': 1}, {'scale': 5.0}, {'eta': 0.0}, {'spacing': 'trailing'})]
    for a in range(len(outs)):
        for b in range(a):
            assert np.abs(outs[a] - outs[b]).max() > 1e-3


@pytest.mark.parametrize('make', [ddpm, lambda: ddim(0.5), heun])
def test_padded_rows_are_skipped(make):
    """As many network calls as steps, counted on the host, and the same result as without padding."""
    calls = []

    def counted(x, level, cond):
        jax.debug.callback(lambda index: calls.append(int(index)), level.index)
        return DENOISE(x, level, cond)

    def run(rows):
        return sample(Playback(TABLE_OF_NOISE), counted, make(), TABLE_OF_NOISE[0], rows, {'label': LABEL}).x

    padded = jax.jit(run)(grid(TABLE, 3, max_steps=9))
    jax.effects_barrier()
    assert sorted(calls) == ([0, 1, 1, 2, 2] if make is heun else [0, 1, 2])
    np.testing.assert_allclose(padded, jax.jit(run)(grid(TABLE, 3)), rtol=1e-6, atol=1e-6)


def test_image_does_not_depend_on_the_batch():
    run = jax.jit(generate)
    full = run(keys(), LABEL, options())
    np.testing.assert_allclose(run(keys()[5:7], LABEL[5:7], options()), full[5:7], rtol=1e-5, atol=1e-6)


def test_jit_vmap_pmap_and_sharding_agree_without_collectives():
    o = options()
    want = jax.jit(generate)(keys(), LABEL, o)
    fold = lambda a, n: a.reshape((n, -1) + a.shape[1:])  # noqa: E731
    got = jax.jit(jax.vmap(generate, in_axes=(0, 0, None)))(fold(keys(), 4), fold(LABEL, 4), o)
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-5, atol=1e-6)
    got = jax.pmap(generate, in_axes=(0, 0, None), devices=jax.devices()[:4])(fold(keys(), 4), fold(LABEL, 4), o)
    np.testing.assert_allclose(np.asarray(got).reshape(want.shape), want, rtol=1e-5, atol=1e-6)

    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    split, whole = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    run = jax.jit(generate, in_shardings=(split, split, whole), out_shardings=split)
    text = run.lower(keys(), LABEL, o).compile().as_text()
    for collective in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter'):
        assert collective not in text
    np.testing.assert_allclose(run(keys(), LABEL, o), want, rtol=1e-5, atol=1e-6)


def test_bfloat16_start_is_computed_in_float32():
    rows = grid(TABLE, 2)
    x_T = jnp.ones((B, *SHAPE), jnp.bfloat16)
    x = sample(Noise(keys()), DENOISE, ddim(), x_T, rows, {'label': LABEL}).x
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, sample(Noise(keys()), DENOISE, ddim(), x_T.astype(jnp.float32), rows,
                                            {'label': LABEL}).x)


def test_trace_and_final_level():
    rows = grid(TABLE, 3, max_steps=5)
    point, xs = sample(Playback(TABLE_OF_NOISE), DENOISE, ddpm(), TABLE_OF_NOISE[0], rows, {'label': LABEL},
                       trace=lambda point: (point.x, point.level.t))
    assert xs[0].shape == (5, B, *SHAPE)
    np.testing.assert_array_equal(xs[1], [333, 0, -1, -1, -1])
    np.testing.assert_array_equal(xs[0][2:], np.broadcast_to(point.x, (3, B, *SHAPE)))
    assert np.abs(xs[0][0] - xs[0][1]).max() > 0.1


def test_carry_reaches_the_next_step():
    """Self-conditioning: the network is told its previous x0."""
    seen = []

    def denoise(x, level, cond):
        jax.debug.callback(lambda i, a: seen.append((int(i), float(a))), level.index, cond['previous'].mean())
        return DENOISE(x, level, cond)._replace(aux={'previous': jnp.full_like(x, level.index + 1.0)})

    rows, x_T = grid(TABLE, 3), jnp.ones((B, *SHAPE))
    point = sample(Noise(keys()), denoise, ddim(), x_T, rows, {'label': LABEL}, carry={'previous': 0 * x_T})
    jax.effects_barrier()
    assert sorted(seen) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    np.testing.assert_array_equal(point.aux['previous'], 3.0)
    dropped = sample(Noise(keys()), lambda x, level, cond: DENOISE(x, level, cond)._replace(aux={'a': x}), ddim(), x_T,
                     rows, {'label': LABEL})
    assert dropped.aux == ()


def jitter():
    """A corrector that adds noise at its level, and counts."""
    return Sampler(lambda point: jnp.int32(0), lambda noise, denoise, point, target, state: (
        Point(point.x + noise.normal('jitter', point.x), target, point.aux), state + 1))


def test_chain_and_repeat():
    noise, rows, x_T = Noise(keys()), grid(TABLE, 2), jnp.zeros((B, *SHAPE))
    still = Sampler(lambda point: (), lambda noise, denoise, point, target, state: (
        Point(point.x, target, point.aux), state))

    @jax.jit
    def run(noise):
        # rows 0 and 1 each add the noise of their place in the chain
        draws = {(i, k): noise.at(i).at(k).normal('jitter', x_T) for i in (0, 1) for k in (0, 1, 2)}
        samplers = (chain(still, jitter()), repeat(jitter(), 3), chain(ddim()), ddim())
        return draws, [sample(noise, DENOISE, s, x_T, rows, {'label': LABEL}).x for s in samplers]

    draws, (chained, repeated, alone, plain) = run(noise)
    np.testing.assert_allclose(chained, draws[0, 1] + draws[1, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(repeated, sum(draws.values()), rtol=1e-5, atol=1e-5)
    flat = np.stack(list(draws.values())).reshape(6, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 0.6
    np.testing.assert_allclose(alone, plain, atol=1e-6)
    state = chain(jitter(), repeat(jitter(), 2)).init(Point(x_T, None))
    _, state = chain(jitter(), repeat(jitter(), 2)).step(noise, None, Point(x_T, 0.0), 0.0, state)
    assert [int(s) for s in state] == [1, 2]


@pytest.mark.parametrize('call, match', [
    (lambda: sample(Noise(keys()), DENOISE, ddim(), jnp.ones((B, 3)), jax.tree.map(lambda a: a[0], grid(TABLE, 3))),
     'rows'),
    (lambda: chain(), 'chain'),
    (lambda: repeat(ddim(), 0), 'n must'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
