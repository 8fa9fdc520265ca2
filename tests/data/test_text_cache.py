import json

import numpy as np
import pytest

from gen_jax.data.shapes import shapes
from gen_jax.data.text_cache import captions_of, open_text_cache, write_text_cache
from gen_jax.data.transforms import text_embeddings, tokenize

ENCODER = {'weights': 'abc'}


def encode(texts):
    """Recognisable rows: states [n, 2, 3] of the text's length and first letter, pooled their first."""
    first = np.array([[len(t), ord(t[0]) if t else 0, 0.5] for t in texts], np.float32)
    return np.stack([first, -first], 1), first


def test_rows_are_those_of_the_captions(tmp_path):
    sizes = []

    def counted(texts):
        sizes.append(len(texts))
        return encode(texts)

    folder = write_text_cache(tmp_path, ['a dog', 'cat', 'a dog', 'bird'], counted, ENCODER, batch_size=3)
    cache = open_text_cache(folder)
    assert sizes == [3, 1] and list(cache.rows) == ['', 'a dog', 'cat', 'bird']
    for text in cache.rows:
        states, pooled = cache[text]
        assert states.dtype == pooled.dtype == np.float32
        np.testing.assert_array_equal(states, encode([text])[0][0])
        np.testing.assert_array_equal(pooled, encode([text])[1][0])
    assert isinstance(cache.states, np.memmap) and cache.states.dtype == np.float16
    assert cache.meta == {'encoder': ENCODER, 'dtype': 'float16', 'shape': [2, 3]}
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.name]
    with pytest.raises(ValueError, match="holds 4 captions, but not 'fish'; make it again"):
        cache['fish']


def test_what_is_there_is_kept_and_what_is_missing_added(tmp_path):
    folder = write_text_cache(tmp_path, ['a dog', 'cat'], encode, ENCODER)

    def never(texts):
        raise AssertionError(texts)

    assert write_text_cache(tmp_path, ['cat'], never, ENCODER) == folder
    assert write_text_cache(tmp_path, ['cat', 'bird'], encode, ENCODER) == folder
    assert list(open_text_cache(folder).rows) == ['', 'a dog', 'cat', 'bird']
    others = [write_text_cache(tmp_path, ['cat'], encode, {'weights': 'abd'}),
              write_text_cache(tmp_path, ['cat'], encode, ENCODER, dtype='float32')]
    assert len({folder, *others}) == 3 and open_text_cache(others[1]).states.dtype == np.float32


def test_a_failure_leaves_what_was_there(tmp_path):
    folder = write_text_cache(tmp_path, ['cat'], encode, ENCODER)

    def broken(texts):
        return np.full((len(texts), 2, 3), 1e6), np.zeros((len(texts), 3))

    with pytest.raises(ValueError, match="states of 3 captions, the first '': .* finite as float16; try float32"):
        write_text_cache(tmp_path, ['cat', 'dog'], broken, ENCODER)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    np.testing.assert_array_equal(open_text_cache(folder)['cat'][1], encode(['cat'])[1][0])
    with pytest.raises(ValueError, match="dtype 'int8': choose float16 or float32"):
        write_text_cache(tmp_path, ['cat'], encode, ENCODER, dtype='int8')


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match='is no cache of text embeddings .*gen-jax embed-text'):
        open_text_cache(tmp_path)
    folder = write_text_cache(tmp_path, ['cat'], encode, ENCODER)
    np.save(folder / 'states.npy', np.zeros((2, 1, 3), np.float16))
    with pytest.raises(ValueError, match=r'2 captions of shape \[2, 3\], but states \(2, 1, 3\)'):
        open_text_cache(folder)
    np.save(folder / 'states.npy', np.zeros((2, 2, 3), np.float16))
    (folder / 'captions.json').write_text(json.dumps(['cat']))
    with pytest.raises(ValueError, match=r'1 captions of shape \[2, 3\], but states \(2, 2, 3\)'):
        open_text_cache(folder)


def test_the_transform_draws_the_caption_that_tokenize_draws(tmp_path):
    source = shapes(size=5, fields='captions')
    texts = captions_of(source)
    assert len(texts) == len(set(texts)) and {c for i in range(5) for c in source[i]['captions']} < set(texts)
    folder = write_text_cache(tmp_path, texts, encode, ENCODER, dtype='float32')
    embeds, tokens = text_embeddings(str(folder), 'captions'), tokenize(lambda text: [len(text)], 'captions')
    drawn = set()
    for seed in range(20):
        example = {'label': 3, **source[seed % 5]}
        ours, theirs = (t.apply(example, np.random.default_rng(seed)) for t in (embeds, tokens))
        assert sorted(ours) == ['encoder_hidden_states', 'label', 'pooled'] and ours['label'] == 3
        assert ours['pooled'][0] == theirs['tokens'][0]
        drawn.add((seed % 5, ours['pooled'][0]))
    assert len(drawn) > 8
    assert json.loads(json.dumps(embeds.spec))['cache']['encoder'] == ENCODER
    with pytest.raises(ValueError, match="text_embeddings: this system needs text, but the example has no 'captions'"):
        embeds.apply({'image': 0}, np.random.default_rng(0))
    with pytest.raises(ValueError, match="the data have no 'caption' but"):
        captions_of(source, 'caption')


def test_the_negative_text_and_the_one_that_was_read(tmp_path):
    folder = write_text_cache(tmp_path, ['cat', 'dog'], encode, ENCODER, dtype='float32')
    # The folder around a cache will do while it holds one.
    transform = text_embeddings(str(tmp_path), negative='', keep=True)
    out = transform.apply({'caption': 'dog', 'label': 1}, np.random.default_rng(0))
    assert sorted(out) == ['caption', 'encoder_hidden_states', 'label', 'negative_encoder_hidden_states',
                           'negative_pooled', 'pooled'] and out['caption'] == 'dog'
    np.testing.assert_array_equal(out['negative_pooled'], open_text_cache(folder)[''][1])
    np.testing.assert_array_equal(out['encoder_hidden_states'], open_text_cache(folder)['dog'][0])
    assert (transform.spec['negative'], transform.spec['keep']) == ('', True)
    with pytest.raises(ValueError, match="not 'wolf'"):
        text_embeddings(str(folder), negative='wolf')
    write_text_cache(tmp_path, ['cat'], encode, {'another': 1})
    with pytest.raises(ValueError, match=f'holds 2 caches of text embeddings: name one of .*{folder.name}'):
        open_text_cache(tmp_path)
