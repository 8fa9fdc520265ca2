"""Weights of the loss: closed forms, and the same loss whatever the network predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion import parameterisation, weighting
from gen_jax.diffusion.process import diffusion as diffusion_coefficient
from gen_jax.diffusion.process import level_at

TARGETS = ('x0', 'eps', 'v', 'score', 'flow', 'edm')
DATA = 0.7
PROCESSES = {'vp': diffusion.vp(), 'sub_vp': diffusion.sub_vp(), 've': diffusion.ve(), 'flow': diffusion.flow(),
             'edm': diffusion.edm(), 'table': diffusion.discrete_ddpm(), 'ncsn': diffusion.discrete_ve()}
MAKERS = {
    'snr': lambda process, target: weighting.snr(target, DATA),
    'truncated_snr': lambda process, target: weighting.truncated_snr(target, DATA),
    'min_snr': lambda process, target: weighting.min_snr(5.0, target, DATA),
    'p2': lambda process, target: weighting.p2(0.5, 2.0, target, DATA),
    'edm': lambda process, target: weighting.edm(DATA, target),
    'sigmoid': lambda process, target: weighting.sigmoid(1.5, target, DATA),
    'sigma_power': lambda process, target: weighting.sigma_power(1.0, target, DATA),
    'likelihood': lambda process, target: weighting.likelihood(process, target, DATA),
}


def levels(process):
    t = np.linspace(process.t_min, process.t_max, 7)[1:-1]
    return level_at(process, np.round(t) if process.steps else t)


def formula(name, target, process, level):
    """The weight on the error of `target`, float64, as the papers state it for the target they use."""
    a, s = level.alpha, level.sigma
    ratio = a ** 2 / s ** 2
    stated = {  # (target, weight)
        'snr': ('x0', ratio), 'truncated_snr': ('x0', np.maximum(ratio, 1)), 'min_snr': ('x0', np.minimum(ratio, 5)),
        'p2': ('x0', ratio / (2 + ratio) ** 0.5), 'sigmoid': ('eps', 1 / (1 + ratio * np.exp(-1.5))),
        'edm': ('x0', ((s / a) ** 2 + DATA ** 2) / (s / a * DATA) ** 2), 'sigma_power': ('score', s),
        'likelihood': ('score', diffusion_coefficient(process, level.t) ** 2 if name == 'likelihood' else None)}
    per_x0 = {'x0': 1 + 0 * a, 'eps': a / s, 'v': (a ** 2 + s ** 2) / s, 'score': a / s ** 2, 'flow': (a + s) / s,
              'edm': np.sqrt(s ** 2 + (a * DATA) ** 2) / (s * DATA)}
    own, weight = stated[name]
    return weight * (per_x0[own] / per_x0[target]) ** 2


@pytest.mark.parametrize('name', MAKERS)
def test_formulas_in_every_target_space(name):
    with jax.enable_x64(True):
        for key, process in PROCESSES.items():
            level = levels(process)
            for target in TARGETS:
                ours = MAKERS[name](process, target)(level)
                want = formula(name, target, process, level)
                np.testing.assert_allclose(ours, want, rtol=1e-9, err_msg=f'{key} {target}')


def test_the_factors_are_those_of_the_parameterisations():
    """An x0 wrong by d at fixed x is a target wrong by what the table says."""
    with jax.enable_x64(True):
        for process in PROCESSES.values():
            level = levels(process)
            x0, eps, d = np.random.default_rng(0).standard_normal((3, 5, 2))
            other = eps - (level.alpha / level.sigma)[:, None] * d
            for target in TARGETS:
                p = getattr(parameterisation, target)(**({'sigma_data': DATA} if target == 'edm' else {}))
                error = p.target(x0 + d, other, level) - p.target(x0, eps, level)
                np.testing.assert_allclose(weighting.snr(target, DATA)(level)[:, None] * error ** 2,
                                           ((level.alpha / level.sigma)[:, None] * d) ** 2, rtol=1e-8)


def test_known_identities():
    level = levels(PROCESSES['edm'])
    np.testing.assert_array_equal(weighting.simple()(level), 1.0)
    np.testing.assert_allclose(weighting.edm(0.5)(level), 1.0, rtol=1e-6)  # EDM's target has unit variance
    np.testing.assert_allclose(weighting.snr('eps')(level), 1.0, rtol=1e-6)  # Ho et al.'s L_simple
    np.testing.assert_allclose(weighting.sigma_power(2.0)(level), level.sigma ** 2, rtol=1e-5)  # NCSN


def test_ends_are_finite():
    ends = level_at(PROCESSES['flow'], jnp.array([0.0, 1.0]))
    for name, make in MAKERS.items():
        for target in TARGETS if name != 'likelihood' else ():  # g is infinite at the end of flow
            assert np.isfinite(make(PROCESSES['flow'], target)(ends)).all(), (name, target)


@pytest.mark.parametrize('call, match', [
    (lambda: weighting.min_snr(0.0), 'gamma'),
    (lambda: weighting.edm(0.0), 'sigma_data'),
    (lambda: weighting.snr('noise'), "'noise'.*eps"),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
