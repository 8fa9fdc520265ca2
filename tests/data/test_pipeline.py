"""The pipeline: batch k is a function of (seed, k); nothing shifts; every change is named."""

import json
import threading
import time

import grain
import numpy as np
import pytest

from gen_jax.data.ledger import CorruptItem, Ledger
from gen_jax.data.pipeline import FingerprintError, check_fingerprint, eval_batches, fingerprint, train_iterator
from gen_jax.data.sources import open_source
from gen_jax.data.transforms import PerExample, centre_crop, keep, pad, random_crop, random_flip, resize


class Numbers:
    """Item i is a 4 x 4 picture of i; the indices in `bad` cannot be decoded."""

    def __init__(self, size=37, bad=(), version=0):
        self.size, self.bad, self.reads = size, frozenset(bad), 0
        self.fingerprint = {'source': 'numbers', 'version': version}
        self.info = {'image_shape': (4, 4, 1), 'num_classes': None, 'label_names': None, 'channels': 1}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads += 1
        if index in self.bad:
            raise CorruptItem(f'{index}.png', 'truncated')
        image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) + np.uint8(index % 256)
        return {'image': image, 'label': np.int32(index), 'caption': f'number {index}'}


AUGMENT = (pad(6), random_crop(4), random_flip())


def take(n, source=None, **settings):
    settings = {'batch_size': 8, 'seed': 3, **settings}
    with train_iterator(Numbers() if source is None else source, **settings) as batches:
        return [next(batches) for _ in range(n)]


def joined(batches, key='label'):
    return np.concatenate([b[key] for b in batches])


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])
            assert x[key].dtype == y[key].dtype


def test_every_epoch_is_another_permutation():
    labels = joined(take(37)).reshape(8, 37)
    for epoch in labels:
        assert sorted(epoch) == list(range(37))
    assert len({tuple(epoch) for epoch in labels}) == 8
    # Neighbouring seeds must not share epochs (seed + epoch would make seed 4 replay epoch 1 of seed 3).
    other = joined(take(37, seed=4)).reshape(8, 37)
    assert not {tuple(e) for e in labels} & {tuple(e) for e in other}


def test_shuffle_is_not_a_pattern():
    order = joined(take(64, Numbers(997), batch_size=64))[:997]
    assert len(np.unique(np.diff(order))) > 300
    assert abs(np.corrcoef(order, np.arange(997))[0, 1]) < 0.15


@pytest.mark.parametrize('shards', [1, 2, 4])
def test_shards_concatenate_to_one_global_batch(shards):
    whole = take(12, transforms=AUGMENT)
    parts = [take(12, transforms=AUGMENT, shard_index=h, shard_count=shards) for h in range(shards)]
    with train_iterator(Numbers(), batch_size=8, seed=3, shard_index=shards - 1, shard_count=shards) as last:
        assert last.indices(5) == whole[5]['label'].tolist(), 'of all shards'
    for step, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([p[step][key] for p in parts]), batch[key])


def test_batches_are_functions_of_seed_and_step():
    straight = take(12, transforms=AUGMENT)
    same(straight, take(12, transforms=AUGMENT, num_threads=4, buffer_size=9, cache=False))
    same(straight, take(12, transforms=AUGMENT, num_threads=0))
    with train_iterator(Numbers(), batch_size=8, seed=3, transforms=AUGMENT) as batches:
        same([straight[7]], [batches.batch(7)])
        assert batches.indices(7) == straight[7]['label'].tolist() and batches.step == 0
    assert not np.array_equal(joined(straight), joined(take(12, seed=4)))
    assert len({tuple(b['label']) for b in straight}) == 12
    pictures = {}
    for b in straight:
        for label, image in zip(b['label'], b['image'], strict=True):
            pictures.setdefault(int(label), set()).add(image.tobytes())
    assert max(map(len, pictures.values())) > 1, 'augmentation must differ from epoch to epoch'


@pytest.mark.parametrize('stop', [1, 3, 4, 9])
def test_resume_equals_straight(stop):
    straight = take(12, transforms=AUGMENT)
    with train_iterator(Numbers(), batch_size=8, seed=3, transforms=AUGMENT) as first:
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
    assert state == {'next_index': stop}
    with train_iterator(Numbers(), batch_size=8, seed=3, transforms=AUGMENT) as second:
        next(second)
        second.set_state(state)
        assert second.step == stop
        same(straight[stop:], [next(second) for _ in range(12 - stop)])
    same(straight[stop:], take(12 - stop, transforms=AUGMENT, start_step=stop))


def test_state_is_refused_where_it_is_not_a_step():
    with train_iterator(Numbers(), batch_size=8, seed=3) as batches:
        for state in ({}, {'next_index': -1}, {'next_index': 1.5}, {'step': 3}):
            with pytest.raises(ValueError, match='next_index'):
                batches.set_state(state)


def test_small_sources_fill_large_batches():
    for size in (1, 2, 3, 5):
        batch, = take(1, Numbers(size), batch_size=4 * size)
        assert np.bincount(batch['label']).tolist() == [4] * size
    assert take(1)[0]['caption'].tolist() == [f'number {i}' for i in take(1)[0]['label']]


def test_cache_reads_once_and_transforms_cannot_spoil_it():
    source = Numbers()
    take(30, source, cache=True)
    assert source.reads == 37
    source = Numbers()
    take(10, source, cache=False, num_threads=0)
    assert source.reads == 80

    def spoil(example, rng):
        example['image'][:] = 0
        return example

    with pytest.raises(ValueError, match='read-only'):
        take(1, transforms=[PerExample(spoil, {'name': 'spoil'})])


def test_a_corrupt_item_shifts_nothing(tmp_path):
    clean = take(37, transforms=AUGMENT)
    bad = {5, 6, 30}
    with train_iterator(Numbers(bad=bad), batch_size=8, seed=3, transforms=AUGMENT,
                        ledger=tmp_path / 'corrupt.jsonl') as batches:
        found = [next(batches) for _ in range(37)]
        assert batches.corrupt_count == 3
    substitutes = {}
    for old, new in zip(clean, found, strict=True):
        hit = np.isin(old['label'], list(bad))
        np.testing.assert_array_equal(new['label'][~hit], old['label'][~hit])
        np.testing.assert_array_equal(new['image'][~hit], old['image'][~hit])
        assert not np.isin(new['label'], list(bad)).any()
        for a, b in zip(old['label'][hit], new['label'][hit], strict=True):
            substitutes.setdefault(int(a), set()).add(int(b))
    assert {k: len(v) for k, v in substitutes.items()} == {5: 1, 6: 1, 30: 1}, 'the substitute must be fixed'
    # ... and depend on no other item: more damage elsewhere leaves it alone.
    fixed = substitutes[5].pop()
    more = set(range(37)) - {fixed, 7, 8}
    other = joined(take(37, Numbers(bad=more), seed=3))
    assert set(other[joined(clean) == 5]) == {fixed}

    entries = [json.loads(line) for line in (tmp_path / 'corrupt.jsonl').read_text().splitlines()]
    assert sorted(e['path'] for e in entries) == ['30.png', '5.png', '6.png']
    assert all(e['reason'] == 'truncated' and e['index'] == int(e['path'][:-4]) for e in entries)
    for entry in entries:  # at the latest where the item stands in the order, or before as a failed substitute
        assert entry['step'] <= next(k for k, b in enumerate(clean) if entry['index'] in b['label'])


def test_the_count_and_the_ledger_survive_restarts(tmp_path):
    settings = {'batch_size': 4, 'seed': 1}

    def counts(pipeline, n):
        seen = []
        for _ in range(n):
            next(pipeline)
            seen.append(pipeline.corrupt_count)
        return seen

    bad = range(0, 37, 5)
    with train_iterator(Numbers(bad=bad), **settings, ledger=tmp_path / 'a.jsonl') as straight:
        expected = counts(straight, 12)
    assert expected[0] < expected[-1] == 8
    with train_iterator(Numbers(bad=bad), **settings, ledger=tmp_path / 'b.jsonl', num_threads=3) as first:
        got = counts(first, 6)  # the last two of these are run again, as after a kill
    with train_iterator(Numbers(bad=bad), **settings, ledger=tmp_path / 'b.jsonl', start_step=4) as second:
        assert got[:4] + counts(second, 8) == expected
    assert (tmp_path / 'a.jsonl').read_text() == (tmp_path / 'b.jsonl').read_text()


def test_ledger_appends_whole_lines_from_threads_and_after_a_torn_one(tmp_path):
    path = tmp_path / 'deep' / 'ledger.jsonl'
    ledger = Ledger(path)
    threads = [threading.Thread(target=lambda: [ledger.record(i, i, f'{i}.png', 'x' * 50) for i in range(100)])
               for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(json.loads(line)['index'] for line in path.read_text().splitlines()) == list(range(100))
    with path.open('a') as file:
        file.write('{"step": 1, "ind')
    again = Ledger(path)
    assert len(again) == 100 and not again.record(7, 7, '7.png', 'x') and again.record(7, 7, 'new.png', 'x')
    assert len(Ledger(path)) == 101
    assert json.loads(path.read_text().splitlines()[-1])['path'] == 'new.png'
    (tmp_path / 'other.jsonl').write_text('hello\n')
    with pytest.raises(ValueError, match='not a ledger'):
        Ledger(tmp_path / 'other.jsonl')


def test_ledgers_of_shards_have_names_of_their_own(tmp_path):
    for h in range(2):
        take(10, Numbers(bad=range(30)), shard_index=h, shard_count=2, ledger=tmp_path / 'corrupt.jsonl')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['corrupt-0-of-2.jsonl', 'corrupt-1-of-2.jsonl']


def test_all_corrupt_is_one_error_and_in_the_ledger(tmp_path):
    for size in (1, 2, 9):
        with pytest.raises(ValueError, match=f'all {size} items of the source are corrupt.*truncated'):
            take(1, Numbers(size, bad=range(size)), ledger=tmp_path / f'{size}.jsonl')
        assert len((tmp_path / f'{size}.jsonl').read_text().splitlines()) == size
    assert set(joined(take(5, Numbers(9, bad=range(8))))) == {8}


def changed(change):
    class Changed(Numbers):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return change(dict(item)) if index == 11 else item
    return Changed()


@pytest.mark.parametrize(('change', 'message'), [
    (lambda x: {**x, 'image': x['image'].astype(np.float32)}, 'item 11 of the source: the image is float32.*uint8'),
    (lambda x: {**x, 'image': np.full((4, 4, 1), np.nan, np.float32)}, "item 11 of the source: 'image' holds NaN"),
    (lambda x: {**x, 'image': x['image'][:3]}, r"'image' of items .*11.*cannot be stacked.*\(3, 4, 1\).*resize"),
    (lambda x: {**x, 'extra': 1}, 'items .* have different entries.*extra'),
])
def test_bad_items_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        take(5, changed(change), seed=0)


def test_a_failing_transform_names_the_item():
    with pytest.raises(ValueError, match=r'item \d+ of the source: centre_crop: an image of 4x4 is smaller'):
        take(1, transforms=[centre_crop(5)])


@pytest.mark.parametrize(('settings', 'message'), [
    ({'batch_size': 6, 'shard_count': 4}, 'batch_size=6 is not divisible by shard_count=4'),
    ({'batch_size': 40, 'shard_count': 40}, '40 shards for 37 examples'),
    ({'shard_index': 2, 'shard_count': 2}, 'shard_index=2 must be less'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'batch_size': 2.0}, 'batch_size=2.0'),
    ({'seed': -1}, 'seed=-1'),
    ({'seed': 2**32}, 'seed='),
    ({'cache': 'maybe'}, "cache='maybe'"),
    ({'start_step': -1}, 'next_index'),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        take(1, **settings)


def test_empty_source():
    with pytest.raises(ValueError, match='empty'):
        take(1, Numbers(0))
    with pytest.raises(ValueError, match='empty'):
        eval_batches(Numbers(0), batch_size=4)


def test_fingerprint_names_exactly_what_changed():
    usual = (resize(4), random_flip())

    def make(seed=3, batch_size=8, version=0, size=37, transforms=usual):
        return json.loads(json.dumps(fingerprint(Numbers(size, version=version), transforms, seed=seed,
                                                 batch_size=batch_size)))

    saved = make()
    check_fingerprint(saved, make())
    with train_iterator(Numbers(), batch_size=8, seed=3, transforms=usual, shard_index=1, shard_count=2,
                        num_threads=3, cache=False) as pipeline:
        check_fingerprint(saved, pipeline.fingerprint)  # shards, threads and the cache change nothing
    cases = [({'seed': 4}, ['seed'], 'seed: was 3, is 4'),
             ({'batch_size': 16}, ['batch_size'], 'batch_size: was 8, is 16'),
             ({'version': 1}, ['source'], 'source.version: was 0, is 1'),
             ({'size': 38}, ['source'], 'source.length: was 37, is 38'),
             ({'transforms': (resize(5), random_flip())}, ['transforms'], r'transforms[0].size: was 4, is 5'),
             ({'transforms': (resize(4),)}, ['transforms'], 'random_flip'),
             ({'seed': 9, 'transforms': (resize(4), random_flip(0.1))}, ['seed', 'transforms'], 'transforms[1].p')]
    for change, parts, detail in cases:
        with pytest.raises(FingerprintError) as caught:
            check_fingerprint(saved, make(**change))
        message = str(caught.value)
        assert f'({", ".join(parts)})' in message and detail in message and 'To resume' in message
    with pytest.raises(FingerprintError, match='grain'):
        check_fingerprint({**saved, 'order': 'x', 'sha256': 'y'}, make())


@pytest.mark.parametrize('shards', [1, 2, 4])
@pytest.mark.parametrize('limit', [None, 10, 16, 1000])
def test_eval_is_one_pass_in_order(shards, limit):
    parts = [list(eval_batches(Numbers(), batch_size=8, shard_index=h, shard_count=shards, limit=limit))
             for h in range(shards)]
    assert len({len(p) for p in parts}) == 1, 'every shard must make the same number of steps'
    rows = [np.concatenate([p[k][key] for p in parts]) for k in range(len(parts[0])) for key in ('label', 'valid')]
    labels, valid = np.concatenate(rows[::2]), np.concatenate(rows[1::2])
    n = min(37, limit or 37)
    assert labels[valid].tolist() == list(range(n)) and len(labels) == -(-n // 8) * 8
    assert valid[:n].all() and not valid[n:].any()


def test_eval_counts_no_example_twice(tmp_path):
    batches = list(eval_batches(Numbers(bad=[4, 20]), batch_size=8, ledger=tmp_path / 'eval.jsonl'))
    labels, valid = joined(batches), joined(batches, 'valid')
    assert labels[valid].tolist() == [i for i in range(37) if i not in (4, 20)]
    assert len((tmp_path / 'eval.jsonl').read_text().splitlines()) == 2
    with pytest.raises(ValueError, match='limit=0'):
        eval_batches(Numbers(), batch_size=8, limit=0)


def test_order_is_grains():
    order = grain.MapDataset.range(37).seed(3).shuffle().repeat()
    assert joined(take(10)).tolist() == [order[i] for i in range(80)]


def test_open_source_lists_the_choices():
    for name in ('cifar', 'folder', 'folder:', 'digits:8', ''):
        with pytest.raises(ValueError, match="'digits', 'shapes', 'folder:PATH', 'tfds:NAME' and 'cached:PATH'"):
            open_source(name)
    with pytest.raises(ValueError, match="'digits' has no option 'size'.*image_size"):
        open_source('digits', size=8)


@pytest.mark.parametrize('name', ['digits', 'shapes'])
def test_embedded_sources_keep_the_contract(name):
    source = open_source(name, 'train')
    json.dumps(source.fingerprint)
    batch, = take(1, source, batch_size=4)
    assert batch['image'].dtype == np.uint8 and batch['image'].shape == (4, *source.info['image_shape'])
    assert batch['label'].dtype == np.int32 and batch['label'].shape == (4,)
    same(take(2, source, batch_size=4, transforms=[keep(['image', 'label'])]),
         take(2, source, batch_size=4, transforms=[keep(['image', 'label'])], cache=False))


def test_small_pictures_are_cheap():
    with train_iterator(Numbers(1797), batch_size=128, seed=0) as batches:
        for _ in range(20):
            next(batches)
        time.sleep(0.1)
        best = min(timed(batches) for _ in range(20))
    assert best < 0.01, f'{best * 1e3:.1f} ms of the main thread for a batch of 128 tiny pictures'


def timed(batches):
    start = time.perf_counter()
    next(batches)
    return time.perf_counter() - start
