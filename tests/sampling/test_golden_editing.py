"""Parity with diffusers in inversion and RePaint, step by step, and in dynamic thresholding and rescaled guidance."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion import guidance, parameterisation
from gen_jax.sampling import ddim, ddim_inverse, grid, repaint, repaint_grid, reverse, sample, time_travel
from gen_jax.types import Denoised, Level
from tests.oracles import StepPlayback
from tests.sampling.reference import MAX_STEPS, PREDICTIONS, process_of, recorded, relative


@pytest.fixture(scope='module')
def golden():
    return recorded('editing', 'xs', 'times')


def test_inversion(golden):
    """All of diffusers' settings with one program."""
    traces = []

    @jax.jit
    def run(kind, limit, rows):
        traces.append(1)

        def denoise(x, level, cond):
            raw = jnp.asarray(golden['outputs'])[level.index]
            branches = [lambda x, p=p: p.denoiser(lambda *_: raw, process_of('linear'))(x, level, cond)
                        for p in PREDICTIONS.values()]
            return jax.lax.switch(kind, branches, x)._replace(aux={'told': level.t})

        return sample(StepPlayback(None), guidance.clip_x0(limit)(denoise), ddim_inverse(compat=True), golden['x'],
                      rows, carry={'told': rows.t[0]}, trace=lambda point: (point.x, point.aux['told']))[1]

    worst = 0.0
    for s in golden['settings']:
        options = {'steps_offset': s['steps_offset']} if s['spacing'] == 'leading' else {}
        rows = reverse(grid(process_of(s['schedule']), s['steps'], s['spacing'], max_steps=MAX_STEPS,
                            set_alpha_to_one=s['set_alpha_to_one'], **options))
        xs, times = run(list(PREDICTIONS).index(s['prediction']), np.float32(1.0 if s['clip'] else np.inf), rows)
        np.testing.assert_array_equal(times[:s['steps']], s['times'])
        worst = max(worst, relative(np.asarray(xs)[:s['steps']], s['xs']).max())
    assert len(traces) == 1 and len(golden['settings']) == 75
    assert worst <= 1e-5, worst


def test_repaint(golden):
    """diffusers draws once per step for the known and the unknown pixels; ours would draw twice."""
    process = diffusion.discrete(golden['betas'])
    rows = repaint_grid(grid(process, 20), 5, 3, compat=True)
    np.testing.assert_array_equal(rows.t[1:], golden['walk_times'] - 1)

    @jax.jit
    def run(eta, limit):
        def denoise(x, level, cond):
            raw = jnp.asarray(golden['outputs'])[level.index]
            return PREDICTIONS['epsilon'].denoiser(lambda *_: raw, process)(x, level, cond)

        sampler = repaint(ddim(eta), golden['known'], golden['mask'])
        return sample(StepPlayback(jnp.asarray(golden['noise'])), guidance.clip_x0(limit)(denoise), sampler,
                      golden['x'], rows, trace=lambda point: point.x)[1]

    for (eta, clip), theirs in zip(golden['variants'], golden['walks'], strict=True):
        error = relative(np.asarray(run(np.float32(eta), np.float32(1.0 if clip else np.inf))), theirs)
        assert error.max() <= 1e-5, (eta, clip, error.max())


def test_a_step_up_adds_the_noise_between_its_levels_and_not_the_reference_s(golden):
    """With fewer steps than betas, diffusers' undo_step takes the betas above the level it goes to: those from
    t to t + 1000 / steps - 1, where x stands at t - 1000 / steps. Its signal shrinks by the wrong factor."""
    process = process_of('linear')
    betas = np.linspace(1e-4, 0.02, 1000)
    for steps, level, theirs in golden['undone']:
        to = level + 1000 / steps
        up = np.array([level, to])
        rows = Level(*(a.astype(np.float32) for a in (up, process.alpha(up), process.sigma(up))), np.arange(2),
                     np.ones(2, int))
        ours = sample(StepPlayback(jnp.zeros((1, 1))), lambda x, *_: Denoised(x, x), time_travel(ddim()), jnp.ones(1),
                      rows).x[0]
        between = betas[int(level) + 1:int(to) + 1]
        np.testing.assert_allclose(ours, np.sqrt(np.prod(1 - between)), rtol=1e-5)
        np.testing.assert_allclose(theirs, process.alpha(2 * to - level - 1) / process.alpha(to - 1), rtol=1e-5)
        assert abs(theirs - ours) > 0.02 * (1 - ours)


LEVEL = Level(np.float32(0.5), np.float32(0.6), np.float32(0.8), 0, 1)


def test_dynamic_threshold(golden):
    for (ratio, top), theirs in zip(golden['thresholds'], golden['thresholded'], strict=True):
        transform = guidance.dynamic_threshold(np.float32(ratio), max_value=top)
        ours = transform(lambda x, level, cond: Denoised(x, x))(golden['wide'], LEVEL, {}).x0
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_rescaled_guidance(golden):
    """diffusers rescales the network's output: here the noise."""
    def denoise(x, level, cond):
        return parameterisation.from_eps(x, jnp.where(cond['on'][:, None, None], golden['on'].repeat(2, 0),
                                                      golden['off'].repeat(2, 0)), level)

    x, cond = jnp.ones((3, 7, 5)), {'on': jnp.ones(3, bool)}
    for phi, theirs in zip((0.3, 0.7, 1.0), golden['rescaled'], strict=True):
        transform = guidance.classifier_free(7.5, {'on': False}, guidance_rescale=phi, rescale_space='eps')
        np.testing.assert_allclose(transform(denoise)(x, LEVEL, cond).eps, theirs, atol=1e-5)
