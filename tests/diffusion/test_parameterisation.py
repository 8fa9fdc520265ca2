"""Parameterisations: conversions are exact inverses of targets on every process, and safe at the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion import parameterisation
from gen_jax.diffusion.process import level_at, perturb
from gen_jax.types import Level

ALL = ['eps', 'x0', 'v', 'score', 'flow', 'edm']
PROCESSES = {'vp': diffusion.vp(), 'sub_vp': diffusion.sub_vp(), 've': diffusion.ve(), 'cosine': diffusion.cosine(),
             'edm': diffusion.edm(), 'flow': diffusion.flow(), 'table': diffusion.discrete_ddpm()}


def draw(n, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((2, n, 4, 1)))


@pytest.mark.parametrize('name', ALL)
def test_denoiser_inverts_target(name):
    p = getattr(parameterisation, name)()
    with jax.enable_x64(True):
        for process in PROCESSES.values():
            t = jnp.asarray(np.linspace(process.t_min, process.t_max, 9)[1:-1])
            t = jnp.round(t) if process.steps else t
            level = level_at(process, t)
            x0, eps = draw(len(t))
            x = perturb(x0, eps, level)
            raw = p.target(x0, eps, level)
            d = p.denoiser(lambda *_, raw=raw: raw, process)(x, level, {})
            np.testing.assert_allclose(d.x0, x0, atol=1e-8)
            np.testing.assert_allclose(d.eps, eps, atol=1e-8)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('ends', [(0.0, 1.0), (1.0, 0.0)])
def test_ends_are_finite_with_finite_gradients(name, ends):
    p = getattr(parameterisation, name)()
    level = Level(jnp.float32(0.5), *map(jnp.float32, ends), jnp.int32(0), jnp.int32(0))
    x, raw = draw(3)

    def total(raw, x, alpha):
        d = p.denoiser(lambda *_: raw, PROCESSES['flow'])(x, level._replace(alpha=alpha), {})
        return d.x0.sum() + d.eps.sum() + p.target(x, raw, level).sum()

    value, grads = jax.value_and_grad(total, (0, 1, 2))(raw, x, level.alpha)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize('name, formula', [
    ('eps', lambda x0, eps, a, s: eps), ('x0', lambda x0, eps, a, s: x0), ('v', lambda x0, eps, a, s: a * eps - s * x0),
    ('score', lambda x0, eps, a, s: -eps / s), ('flow', lambda x0, eps, a, s: eps - x0)])
def test_targets(name, formula):
    level = level_at(PROCESSES['vp'], jnp.array([0.2, 0.7]))
    x0, eps = draw(2)
    want = formula(x0, eps, *(np.asarray(a)[:, None, None] for a in (level.alpha, level.sigma)))
    np.testing.assert_allclose(getattr(parameterisation, name)().target(x0, eps, level), want, rtol=1e-5)


def test_edm_is_the_table_of_the_paper():
    """D = c_skip x + c_out F(c_in x, c_noise), Karras et al. 2022, Table 1, column EDM."""
    sigma, data = np.array([0.002, 0.3, 80.0]), 0.5
    p, x = parameterisation.edm(data), draw(3)[0]
    seen = {}

    def network(x, label, cond):
        seen.update(x=x, label=label)
        return jnp.sin(x)

    d = p.denoiser(network, PROCESSES['edm'])(x, level_at(PROCESSES['edm'], jnp.asarray(sigma, jnp.float32)), {})
    s = sigma[:, None, None]
    c_in = 1 / np.sqrt(s ** 2 + data ** 2)
    want = data ** 2 / (s ** 2 + data ** 2) * x + s * data * c_in * np.sin(c_in * x)
    np.testing.assert_allclose(d.x0, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen['x'], c_in * x, rtol=1e-5)
    np.testing.assert_allclose(seen['label'], np.log(sigma) / 4, rtol=1e-5)


def test_labels():
    level = level_at(PROCESSES['vp'], jnp.array([0.25, 1.0]))
    np.testing.assert_allclose(parameterisation.eps().label(level, PROCESSES['vp']), [250, 1000])
    np.testing.assert_allclose(parameterisation.v(label_scale=1).label(level, PROCESSES['vp']), [0.25, 1])
    index = level_at(PROCESSES['table'], jnp.array([7, 999]))
    np.testing.assert_array_equal(parameterisation.eps().label(index, PROCESSES['table']), [7, 999])
    two = diffusion.discrete([0.1, 0.2])  # t_max = 1, still an index
    np.testing.assert_array_equal(parameterisation.eps().label(level_at(two, jnp.array([1])), two), [1])


def test_labels_of_score_networks():
    """NCSN counts the sigmas from the greatest; NCSN++ is told sigma."""
    table = diffusion.discrete_ve(1.0, 0.01, 10)
    level = level_at(table, jnp.array([-1.0, 0.0, 3.0, 9.0]))
    np.testing.assert_array_equal(parameterisation.score(label='descending').label(level, table), [9, 9, 6, 0])
    np.testing.assert_array_equal(parameterisation.score(label='sigma').label(level, table), level.sigma)
    with pytest.raises(ValueError, match="'index'.*descending"):
        parameterisation.eps(label='index')
    with pytest.raises(ValueError, match='label_scale'):
        parameterisation.eps(label_scale=999.0, label='sigma')
    with pytest.raises(ValueError, match='continuous'):
        parameterisation.score(label='descending').label(level, PROCESSES['ve'])


def test_network_dtype_and_shape():
    x, raw = draw(2)
    level = level_at(PROCESSES['vp'], jnp.array(0.5))  # one level for the batch: labels are still [B]

    def network(x, label, cond):
        assert label.shape == (2,)
        return raw.astype(jnp.bfloat16)

    d = parameterisation.eps().denoiser(network, PROCESSES['vp'])(x.astype(jnp.bfloat16), level, {})
    assert d.x0.dtype == d.eps.dtype == jnp.float32
    with pytest.raises(ValueError, match=r'\(2, 4, 2\).*\(2, 4, 1\)'):
        wide = parameterisation.eps().denoiser(lambda x, *_: jnp.tile(x, 2), PROCESSES['vp'])
        wide(x, level, {})
