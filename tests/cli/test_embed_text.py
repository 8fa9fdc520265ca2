"""gen-jax embed-text: which captions, and that the rows are those of the trained text tower."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import build, trees
from gen_jax.cli.embed_text_run import captions_of_config, embed_text
from gen_jax.cli.main import main
from gen_jax.config import ConfigError, apply_overrides, load_config
from gen_jax.data.shapes_captions import class_captions, shapes_vocabulary
from gen_jax.data.text_cache import open_text_cache
from gen_jax.engine.evaluate import Predictor
from gen_jax.engine.sharding import make_mesh
from gen_jax.models.clip import clip_shapes
from gen_jax.tokenizers import words
from gen_jax.types import Variables
from tests.golden.draws import draw


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    """A run of shapes_clip:debug as `load` returns it, with drawn weights instead of trained ones."""
    config = load_config('shapes_clip:debug')
    predictor = Predictor(build.make_system(config), make_mesh({'data': 1}, jax.devices()[:1]))
    batch = {'image': np.zeros((1, 32, 32, 3), np.float32), 'tokens': np.zeros((1, 10), np.int32)}
    shapes = jax.eval_shape(lambda: predictor.system.init(jax.random.key(0), batch))[0]
    params = trees.map_with_path(lambda path, x: draw(path, x.shape), shapes)
    workdir = tmp_path_factory.mktemp('run')
    return SimpleNamespace(config=config, predictor=predictor, variables=Variables(params), workdir=workdir)


def test_the_rows_are_the_text_towers(loaded, tmp_path):
    texts = ['a red circle', 'a small pink star', '', 'one green square']
    folder = embed_text(loaded, texts, tmp_path, batch_size=3, dtype='float32')
    settings = loaded.config.system.network.to_dict()
    assert settings.pop('name') == 'models.clip_shapes'
    cache, network = open_text_cache(folder), clip_shapes(**settings)
    tokens = words(loaded.config.data.transforms[0]['tokenizer']['vocab'], 10)(texts)
    run = jax.jit(lambda params, tokens: network.apply({'params': params}, tokens, method='text_states'))
    states, pooled = run(loaded.variables.params['clip'], jnp.asarray(tokens))
    for i, text in enumerate(texts):
        np.testing.assert_allclose(cache[text][0], states[i], atol=2e-5)
        np.testing.assert_allclose(cache[text][1], pooled[i], atol=2e-5)
    end = int((tokens[1] == 2).argmax())
    np.testing.assert_allclose(cache[texts[1]][1], cache[texts[1]][0][end], atol=1e-6)
    changed = trees.map_with_path(lambda path, x: x + ('text_projection' in path), loaded.variables.params)
    other = SimpleNamespace(**{**vars(loaded), 'variables': Variables(changed)})
    folders = [embed_text(run, [''], tmp_path, batch_size=3, dtype='float32') for run in (loaded, other)]
    assert folders[0] == folder != folders[1]


def test_captions_of_a_config(loaded):
    texts = captions_of_config(loaded.config)
    assert set(class_captions()) < set(texts) and len(texts) == len(set(texts))
    assert any('purple circle' in text for text in texts)  # of the split 'heldout', which config.evaluate names
    one = captions_of_config(loaded.config, ['val'])
    assert set(one) < set(texts)
    two = captions_of_config(apply_overrides(load_config('shapes_clip:objects=2,debug'), []), ['train'])
    assert any(' left of ' in text for text in two) and not any(' left of ' in text for text in texts)
    assert {w for text in two for w in text.replace(',', ' ,').split()} <= set(shapes_vocabulary())
    with pytest.raises(ConfigError, match='has 0 of tokenize and text_embeddings'):
        captions_of_config(load_config('digits:debug'))


def test_the_command(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, 'load', lambda *args, **kwargs: loaded)
    monkeypatch.setattr('gen_jax.cli.embed_text.prepare_jax', lambda: None)
    (tmp_path / 'prompts.txt').write_text('a red star\na blue square\n')
    arguments = ['embed-text', '--workdir', str(loaded.workdir), '--batch-size', '3']
    assert main([*arguments, '--captions', str(tmp_path / 'prompts.txt')]) == 0
    said = capsys.readouterr().out
    cache = open_text_cache(said.split(': ')[-1].strip())
    assert list(cache.rows) == ['', 'a red star', 'a blue square'] and '3 captions, states [3, 10, 8] float16' in said
    assert cache.folder.parent == loaded.workdir / 'text'
    for wrong, message in [(['--batch-size', '0'], '--batch-size 0: at least 1'),
                           (['--captions', str(tmp_path / 'none.txt')], 'none.txt')]:
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(['embed-text']) == 2 and 'needs --workdir' in capsys.readouterr().err
    loaded.predictor.system.predict.pop('text_states')
    assert main([*arguments, '--captions', str(tmp_path / 'prompts.txt')]) == 2
    assert "has no predict 'text_states'; choose the run of a CLIP" in capsys.readouterr().err
