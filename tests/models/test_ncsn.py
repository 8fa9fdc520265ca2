"""NCSN and NCSNv2 against what their published code answers."""

from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import discrete_ve
from gen_jax.diffusion.parameterisation import score
from gen_jax.diffusion.process import level_at, perturb
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models.ncsn import NCSN, ncsn_digits
from gen_jax.models.ncsnv2 import DEEPER, DEEPEST, STAGES, NCSNv2, ncsnv2_digits
from gen_jax.nn.refinenet import resize_bilinear
from tests.golden.make_ncsn import CASES, LEVELS, SIGMAS, inputs, weight

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'ncsn.npz')
DEPTHS = {'NCSNv2': STAGES, 'NCSNv2Deeper': DEEPER, 'NCSNv2Deepest': DEEPEST}


@lru_cache
def case(name):
    """The network, its parameters with the reference's weights, and a jitted apply."""
    _, kind, ngf, centred = CASES[name]
    if kind in DEPTHS:
        network = NCSNv2(LEVELS, *SIGMAS, ngf, DEPTHS[kind], center_input_sample=centred)
    else:
        network = NCSN(LEVELS, ngf, center_input_sample=centred)
    made = jax.eval_shape(network.init, jax.random.key(0), *inputs())['params']
    keys = to_torch(jax.tree.map(lambda s: np.zeros(s.shape), made))
    params = from_torch({k: weight(k, v.shape) for k, v in keys.items()}, made)
    return network, params, jax.jit(lambda params, *x: network.apply({'params': params}, *x))


def off(y, golden):
    """The largest error of each example over its own scale, which is 1 / sigma."""
    return np.abs(y - golden).max((1, 2, 3)) / np.abs(golden).max((1, 2, 3))


@pytest.mark.parametrize('name', CASES)
def test_golden_parity(name):
    network, params, apply = case(name)
    assert sorted(to_torch(params)) == list(GOLDEN[f'{name}/keys'])
    y = apply(params, *inputs())
    assert y.dtype == jnp.float32
    assert off(y, GOLDEN[name]).max() < 1e-4
    # a weight with its rows the other way round, deep in the trunk, is seen
    kernel = params['refine1']['crp']['convs.1']['kernel']
    wrong = {**params, 'refine1': {**params['refine1'], 'crp': {
        **params['refine1']['crp'], 'convs.1': {'kernel': kernel[:, :, ::-1]}}}}
    assert off(apply(wrong, *inputs()), GOLDEN[name]).min() > 1e-3


def test_label_is_the_row_from_the_greatest_sigma():
    """Through `discrete_ve` and `score`, NCSNv2 divides by the sigma of the level that it is asked about."""
    _, params, apply = case('ncsnv2')
    process, p = discrete_ve(*SIGMAS, LEVELS), score(label='descending')
    level = level_at(process, jnp.array([0.0, 2.0, LEVELS - 1.0]))
    x0, eps = jnp.asarray(np.random.default_rng(0).uniform(0, 1, (2, *inputs()[0].shape)), jnp.float32)
    x = perturb(x0, eps, level)
    denoise = p.denoiser(lambda x, label, cond: apply(params, x, np.asarray(label, np.int64)), process)
    raw = apply(params, x, np.zeros(3, np.int64)) * SIGMAS[0]  # of the label no other use is made than to divide
    np.testing.assert_allclose(denoise(x, level, {}).eps, -raw, rtol=1e-4, atol=1e-5)


def test_corners_are_aligned():
    x = np.arange(3.0)[:, None] * 10 + np.arange(4.0)
    y = resize_bilinear(jnp.asarray(x[None, :, :, None], jnp.float32), (5, 10))[0, :, :, 0]
    np.testing.assert_allclose(y, np.linspace(0, 20, 5)[:, None] + np.linspace(0, 3, 10), rtol=1e-6)


def test_compute_dtype_and_bad_input():
    x, label = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)
    for make in (ncsn_digits, ncsnv2_digits):
        made = jax.eval_shape(lambda make=make: make(dtype='bfloat16').init_with_output(jax.random.key(0), x, label))
        assert {a.dtype for a in jax.tree.leaves(made)} == {np.dtype('float32')}
        assert sum(a.size for a in jax.tree.leaves(made[1])) < 1e6
    with pytest.raises(ValueError, match=r'divisible by 8.*\(1, 12, 16, 1\)'):
        jax.eval_shape(NCSNv2(stages=DEEPEST).init, jax.random.key(0), jnp.zeros((1, 12, 16, 1)), label)
