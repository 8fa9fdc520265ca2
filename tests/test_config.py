"""Overrides, files and names."""

import pytest

from gen_jax.config import (
    ConfigError,
    apply_overrides,
    base_config,
    complete,
    flatten,
    from_json,
    load_config,
    to_json,
)
from gen_jax.names import lookup, make
from gen_jax.sweeps.overrides import override


def test_optional_values_can_be_set_and_unset():
    config = apply_overrides(load_config('shapes_clip'), ['--config.optim.clip_norm=None',
                                                          '--config.sample.every_steps=5'])
    assert config.optim.clip_norm is None and config.sample.every_steps == 5
    config = apply_overrides(load_config('digits'), ['--config.sample.settings.guidance_scale=None',
                                                     '--config.optim.clip_norm', '0.5'])
    assert config.sample.settings.guidance_scale is None and config.optim.clip_norm == 0.5
    assert load_config('digits').sample.settings.guidance_scale == 2.0, 'the original is left alone'


@pytest.mark.parametrize('ema', [{}, {'fast': {'decay': 0.5}}, {'a': {'decay': 0.5}, 'z': {'decay': 0.9}}])
def test_saved_configs_come_back_as_they_were(ema):
    config = base_config()
    config.train.ema = ema
    config.system = {'name': 'systems.vae', 'network': {'name': 'models.vae_tiny'}}
    back = complete(from_json(to_json(config)))
    assert to_json(back) == to_json(config)
    old = from_json(to_json(config))
    del old.train['max_seconds']
    assert complete(old).train.max_seconds is None, 'a setting of later days has its default'


def test_files_of_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'helper_of_mine.py').write_text('def f(a, process):\n    return a, process\n')
    path = tmp_path / 'mine.py'
    path.write_text('from gen_jax.config import base_config\n\n\ndef get_config(arg=""):\n    c = base_config()\n'
                    '    c.name = arg\n    return c\n')
    assert load_config(f'{path}:x,y').name == 'x,y'
    assert make({'name': 'helper_of_mine:f', 'a': {'name': 'helper_of_mine:f', 'a': 1, 'process': 2}, 'process': 3}
                ) == ((1, 2), 3)
    # What a nested spec leaves out, a sibling that is a spec provides; a number is not shared.
    inner, other = {'name': 'helper_of_mine:f', 'a': 1}, {'name': 'helper_of_mine:f', 'a': 2, 'process': 3}
    assert make({'name': 'helper_of_mine:f', 'a': inner, 'process': other}) == ((1, (2, 3)), (2, 3))
    with pytest.raises(TypeError, match='process'):
        make({'name': 'helper_of_mine:f', 'a': inner, 'process': 3})
    for body, message in (('import not_there_at_all\n', 'line 1: ModuleNotFoundError'), ('def f(:\n', 'SyntaxError'),
                          ('x = 1\n', 'defines no get_config'),
                          ('def get_config(arg):\n    return arg.nothing\n', 'line 2: AttributeError')):
        path.write_text(body)
        for name in (str(path), path.name):  # by a relative path, too
            with pytest.raises(ConfigError, match=message):
                load_config(name)


def test_names():
    for name, message in (('diffusion.cosin', 'did you mean cosine'), ('nowhere.x', 'expected one of'),
                          ('no_such_module:f', 'No module'), ('gen_jax.rng:nothing', 'nothing')):
        with pytest.raises(ConfigError, match=message):
            lookup(name)
    with pytest.raises(ConfigError, match="takes no 'log_snr'.*did you mean log_snr_m"):
        make({'name': 'diffusion.cosine', 'log_snr': 3.0})
    with pytest.raises(ConfigError, match='needs a name'):
        make({'log_snr': 3.0})


@pytest.mark.parametrize('given,where,expected', [
    ('system.process.name=diffusion.flow system.process.shift=3', 'system.process.shift', 3),
    ('system.process.shift=3 system.process.name=diffusion.flow', 'system.process.shift', 3),  # in either order
    ('system.spacing=karras', 'system.spacing', 'karras'),
    ('system.settings.eta=1.0', 'system.settings.eta', 1.0),
    ('system.loss.name=diffusion.losses.denoising system.loss.offset_noise=0.1', 'system.loss.offset_noise', 0.1),
    ('system.network.block_out_channels=(32,32)', 'system.network.block_out_channels', (32, 32)),
    ('evaluate.guided.settings.eta=0.5', 'evaluate.guided.settings.eta', 0.5),
    ('sample.settings.solver=heun', 'sample.settings.solver', 'heun'),
])
def test_what_a_config_leaves_out_can_be_set(given, where, expected):
    """Keywords of what a spec names, the name of a spec that is not there, and any setting of a predict."""
    argv = [f'--config.{part}' for part in given.split()]
    assert flatten(apply_overrides(load_config('digits'), argv))[where] == expected
    values = {k: {'3': 3, '1.0': 1.0, '0.1': 0.1, '0.5': 0.5, '(32,32)': (32, 32)}.get(v, v)
              for k, v in (part.split('=') for part in given.split())}
    assert flatten(override(load_config('digits'), values))[where] == expected, 'a sweep may say the same'


@pytest.mark.parametrize('given,match', [
    ('system.process.shfit=3', "diffusion.cosine takes no 'shfit': choose from log_snr_max"),
    ('system.network.blocks=3', "models.unet_digits takes no 'blocks': did you mean up_block_types"),
    ('system.los.name=diffusion.losses.denoising', "systems.diffusion takes no 'los': did you mean loss"),
    ('system.spacing', '--config.system.spacing has no value'),
    ('optim.setings.x=3', "unknown config key 'config.optim.setings.x'"),
])
def test_what_means_nothing_is_refused(given, match):
    with pytest.raises(ConfigError, match=match):
        apply_overrides(load_config('digits'), [f'--config.{given}'])
