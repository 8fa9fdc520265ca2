"""gen-jax cache: what is written is what the trained network says, once."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gen_jax import build, trees
from gen_jax.cli.cache import cache
from gen_jax.cli.main import main
from gen_jax.config import apply_overrides, load_config
from gen_jax.data.sources import open_source
from gen_jax.engine.evaluate import Predictor
from gen_jax.engine.sharding import make_mesh
from gen_jax.models import autoencoder_kl_tiny
from gen_jax.types import Variables
from tests.golden.draws import draw


@pytest.fixture(scope='module')
def loaded():
    """A run of shapes_vae:debug as `load` returns it, with drawn weights instead of trained ones."""
    fields = "--config.data.options.fields=('image','label','caption')"
    config = apply_overrides(load_config('shapes_vae:debug'), [fields])
    predictor = Predictor(build.make_system(config), make_mesh({'data': 1}, jax.devices()[:1]))
    batch = {'image': np.zeros((1, 32, 32, 3), np.float32)}
    shapes = jax.eval_shape(lambda: predictor.system.init(jax.random.key(0), batch))[0]
    params = trees.map_with_path(lambda path, x: 0.3 * draw(path, x.shape), shapes)
    return SimpleNamespace(config=config, predictor=predictor, variables=Variables(params))


def test_the_cache_is_what_the_encoder_says(loaded, tmp_path):
    manifest = cache(loaded, 'train', tmp_path, n=10, batch_size=4)
    assert manifest['length'] == 10 and set(manifest['fields']) == {'label', 'mean', 'log_var'}
    source, plain = open_source(f'cached:{tmp_path}'), open_source('shapes', size=64)
    items, images = [source[i] for i in range(10)], np.stack([plain[i]['image'] for i in range(10)])
    assert [i['caption'] for i in items] == [plain[i]['caption'] for i in range(10)]
    assert [i['label'] for i in items] == [plain[i]['label'] for i in range(10)]
    network = {k: v for k, v in loaded.config.system.network.items() if k != 'name'}
    given = {'params': loaded.variables.params['autoencoder']}, images.astype(np.float32) / 127.5 - 1
    expected = jax.jit(lambda v, x: autoencoder_kl_tiny(**network).apply(v, x, method='encode'))(*given)
    for key, value in zip(('mean', 'log_var'), expected, strict=True):
        np.testing.assert_allclose(np.stack([i[key] for i in items]), value, rtol=1e-4, atol=1e-4)

    def other(variables):
        return SimpleNamespace(config=loaded.config, predictor=None, variables=variables)

    assert cache(other(loaded.variables), 'train', tmp_path, n=10) == manifest  # nothing is computed again
    moved = Variables(jax.tree.map(lambda x: x + 1e-6, loaded.variables.params))
    with pytest.raises(ValueError, match='other weights'):
        cache(other(moved), 'train', tmp_path, n=10)


def test_bad_input_is_named(loaded, tmp_path, capsys):
    with pytest.raises(ValueError, match="'encode' has no output 'x': choose from log_var, mean, z"):
        cache(loaded, 'train', tmp_path, outputs=('x',), n=4, batch_size=4)
    assert not list(tmp_path.iterdir())
    for arguments, message in (([], '--workdir DIR'), (['--workdir', str(tmp_path), '--out', 'x', '--n', '0'], '--n'),
                               (['--workdir', str(tmp_path), '--out', 'x'], 'holds no run')):
        assert main(['cache', *arguments]) == 2
        assert message in capsys.readouterr().err
