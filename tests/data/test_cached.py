import json

import numpy as np
import pytest

from gen_jax.data import pipeline
from gen_jax.data.cached import write_cache
from gen_jax.data.sources import open_source

RNG = np.random.RandomState(0)
DATA = {'mean': RNG.randn(7, 2, 3, 4).astype(np.float32), 'label': np.arange(7, dtype=np.int32),
        'caption': np.array([f'über {i}' for i in range(7)], object),
        'captions': np.array([[f'a{i}', 'b'] for i in range(7)] + [None], object)[:7]}
MADE_BY = {'weights': {'a': '01'}, 'data': ('x', 1)}


def batches(size=3, data=DATA):
    """Batches of one size, the last row repeated behind the end, as evaluation has them."""
    for first in range(0, 7, size):
        yield {k: v[np.minimum(np.arange(first, first + size), 6)] for k, v in data.items()}


@pytest.fixture
def folder(tmp_path):
    write_cache(tmp_path / 'c', 'train', batches(), length=7, made_by=MADE_BY, info={'num_classes': 10})
    return tmp_path / 'c'


def test_examples_come_back(folder):
    source = open_source(f'cached:{folder}')
    assert len(source) == 7 and source.info['num_classes'] == 10
    for i in range(7):
        item = source[i]
        np.testing.assert_array_equal(item['mean'], DATA['mean'][i])
        assert item['label'] == i and item['label'].dtype == np.int32
        assert (item['caption'], item['captions']) == (f'über {i}', [f'a{i}', 'b'])
    spread = source.info['statistics']
    assert spread.keys() == {'mean'}
    expected = [DATA['mean'].mean(), DATA['mean'].std()]
    np.testing.assert_allclose([spread['mean']['mean'], spread['mean']['std']], expected, rtol=1e-5)
    assert open_source(f'cached:{folder}', fields=('label', 'caption'))[2] == {'label': 2, 'caption': 'über 2'}
    with pytest.raises(IndexError, match='index 7'):
        source[7]


def test_training_reads_it(folder):
    with pipeline.train_iterator(open_source(f'cached:{folder}'), batch_size=7, seed=0, num_threads=0) as data:
        batch = data.batch(0)
    assert batch['mean'].shape == (7, 2, 3, 4) and sorted(batch['label']) == list(range(7))
    np.testing.assert_array_equal(batch['mean'], DATA['mean'][batch['label']])


def test_the_fingerprint_follows_what_it_was_made_by(folder, tmp_path):
    source = open_source(f'cached:{folder}')
    write_cache(tmp_path / 'same', 'train', batches(2), length=7, made_by=MADE_BY, info={'num_classes': 10})
    assert open_source(f'cached:{tmp_path / "same"}').fingerprint == source.fingerprint
    write_cache(tmp_path / 'other', 'train', batches(), length=7, made_by={**MADE_BY, 'weights': {'a': '02'}},
                info={'num_classes': 10})
    assert open_source(f'cached:{tmp_path / "other"}').fingerprint != source.fingerprint
    assert open_source(f'cached:{folder}', fields=('mean',)).fingerprint != source.fingerprint


def test_made_once(folder):
    """The same again is left alone; another is refused and changes nothing."""
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    write_cache(folder, 'train', iter(()), length=7, made_by=MADE_BY, info={})
    for settings in ({'made_by': {}, 'length': 7}, {'made_by': MADE_BY, 'length': 6}):
        with pytest.raises(ValueError, match='other weights, data or settings; delete it or'):
            write_cache(folder, 'train', batches(), info={}, **settings)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob('*')} == before


def test_nothing_is_left_of_a_failure(tmp_path):
    def broken():
        yield next(batches())
        raise RuntimeError('the encoder failed')

    sets = batches(data={'a': np.array([{1}] * 7)})
    for given, error, message in ((broken(), RuntimeError, 'encoder failed'), (batches(), ValueError, '10 examples'),
                                  (sets, ValueError, 'a of example 0 cannot be')):
        with pytest.raises(error, match=message):
            write_cache(tmp_path, 'train', given, length=10, made_by={}, info={})
        assert not list(tmp_path.iterdir())


def test_what_is_no_cache_is_named(folder):
    with pytest.raises(ValueError, match="no cached split 'test': there are train"):
        open_source(f'cached:{folder}', split='test')
    with pytest.raises(ValueError, match="no entry 'z'; choose from mean, label, caption, captions"):
        open_source(f'cached:{folder}', fields=('z',))
    np.save(folder / 'train' / 'mean.npy', DATA['mean'][:5])
    with pytest.raises(ValueError, match=r'mean.npy holds float32\(5, 2, 3, 4\), not float32 of \(7, 2, 3, 4\)'):
        open_source(f'cached:{folder}')
    (folder / 'train' / 'text.jsonl').write_text('{"caption": "x", "captions": []}\n')
    with pytest.raises(ValueError, match='1 lines, not 7'):
        open_source(f'cached:{folder}', fields=('caption',))
    manifest = json.loads((folder / 'train' / 'manifest.json').read_text())
    (folder / 'train' / 'manifest.json').write_text(json.dumps({**manifest, 'version': 2}))
    with pytest.raises(ValueError, match='version 2, not 1'):
        open_source(f'cached:{folder}')
    (folder / 'train' / 'manifest.json').write_text('{')
    with pytest.raises(ValueError, match='gen-jax cache'):
        open_source(f'cached:{folder}')
