"""scheduler_config.json from and to a folder; what the options mean is tested in tests/sampling/test_compat.py."""

import json

import numpy as np
import pytest

from gen_jax.pipelines.schedulers import load_scheduler, read_scheduler_config, save_scheduler
from gen_jax.sampling import from_diffusers

# As stable-diffusion-v1-5 publishes it.
PNDM = {'_class_name': 'PNDMScheduler', '_diffusers_version': '0.6.0', 'beta_end': 0.012,
        'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'num_train_timesteps': 1000,
        'set_alpha_to_one': False, 'skip_prk_steps': True, 'steps_offset': 1, 'trained_betas': None,
        'clip_sample': False}


def test_a_published_scheduler(tmp_path):
    path = save_scheduler(PNDM, tmp_path / 'sd' / 'scheduler')
    assert path.name == 'scheduler_config.json' and read_scheduler_config(tmp_path / 'sd') == PNDM
    scheduler = load_scheduler(tmp_path / 'sd')
    assert scheduler.sampler['name'] == 'pndm' and scheduler.process.steps == 1000
    expected = from_diffusers(PNDM).grid(20)
    np.testing.assert_array_equal(scheduler.grid(20).t, expected.t)
    assert load_scheduler(tmp_path / 'sd' / 'scheduler', '').sampler == scheduler.sampler
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize('changes, message', [
    ({'_class_name': 'PNDMSheduler'}, "of .*sd: Unknown scheduler _class_name='PNDMSheduler', did you mean 'PNDMSch"),
    ({'beta_shedule': 'linear'}, "of .*sd: Unknown option beta_shedule='linear' of PNDMScheduler, did you mean 'b"),
    ({'prediction_type': 'u'}, "of .*sd: Unknown prediction_type 'u'"),
])
def test_unknown_classes_and_options_are_errors(tmp_path, changes, message):
    folder = tmp_path / 'sd' / 'scheduler'
    folder.mkdir(parents=True)
    (folder / 'scheduler_config.json').write_text(json.dumps({**PNDM, **changes}))
    with pytest.raises(ValueError, match=message):
        load_scheduler(tmp_path / 'sd')
    with pytest.raises(ValueError):
        save_scheduler({**PNDM, **changes}, tmp_path / 'b')
    assert not (tmp_path / 'b').exists()


def test_no_scheduler(tmp_path):
    with pytest.raises(ValueError, match='no sub-folder .scheduler.'):
        load_scheduler(tmp_path)
    with pytest.raises(ValueError, match='no file .*scheduler_config.json'):
        load_scheduler(tmp_path, '')
