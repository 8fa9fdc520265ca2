"""What the tests against recorded schedulers share: the files, their betas, and how errors are counted."""

import functools
import json
from pathlib import Path

import numpy as np

from gen_jax import diffusion
from gen_jax.diffusion import parameterisation

PREDICTIONS = {'epsilon': parameterisation.eps(), 'sample': parameterisation.x0(), 'v_prediction': parameterisation.v()}
MAX_STEPS = 50


def recorded(name, *split):
    """tests/golden/NAME.npz as a dict; `settings` parsed, each with its own rows of the arrays named in `split`."""
    with np.load(Path(__file__).parents[1] / 'golden' / f'{name}.npz') as file:
        golden = dict(file)
    golden['settings'] = json.loads(str(golden['settings']))
    ends = np.cumsum([s['steps'] for s in golden['settings']])[:-1]
    for key in split:
        for s, rows in zip(golden['settings'], np.split(golden[key], ends), strict=True):
            s[key] = rows
    return golden


@functools.cache
def process_of(schedule):
    """The table of that name, with the betas that the golden scripts use."""
    betas = (0.00085, 0.012) if schedule == 'scaled_linear' else (1e-4, 0.02)
    return diffusion.discrete_ddpm(schedule, *betas)


def relative(ours, theirs):
    """max|err| / max|x| of every step."""
    return np.abs(ours - theirs).max((1, 2)) / np.abs(theirs).max((1, 2))
