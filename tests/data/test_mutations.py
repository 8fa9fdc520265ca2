"""Hundreds of broken pictures: nothing crashes, hangs or unpacks a bomb; each skip is named; nothing behind it shifts.

Counted by hand: `mutations.corpus` breaks some 540 files, `test_metadata.py` some 200 metadata files.
"""

import json
import queue
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from gen_jax.data.decode import decode_image
from gen_jax.data.pipeline import train_iterator
from gen_jax.data.sources import open_source
from gen_jax.data.transforms import random_crop, random_flip, resize
from tests.data import mutations

SECONDS_PER_ITEM = 30  # a hang never ends; a busy machine may be slow
MIB = 100
pytestmark = pytest.mark.filterwarnings('ignore')  # of damaged files, Pillow warns a hundred times
AUGMENT = (resize(18), random_crop(16), random_flip())


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """(the corpus, the clean folder, the broken one); `id` in their metadata says which item a row is."""
    root, files = tmp_path_factory.mktemp('mutations'), mutations.corpus()
    lines = ''.join(json.dumps({'file_name': f.name, 'id': i}) + '\n'
                    for i, f in enumerate(sorted(files, key=lambda f: f.name)))
    for place in ('clean', 'broken'):
        (root / place).mkdir()
        (root / place / 'metadata.jsonl').write_text(lines)
        for file in files:
            (root / place / file.name).write_bytes(getattr(file, place))
    return files, root / 'clean', root / 'broken'


@pytest.fixture(scope='module')
def outcomes(folders):
    """What a child process made of every broken file: a crash or a hang of a decoder is its own, and has a name."""
    script = Path(mutations.__file__)
    child = subprocess.Popen([sys.executable, '-c', f'import sys; sys.path[:0] = {sys.path!r}\n'
                              f'from tests.data.mutations import read_all; read_all(sys.argv[1])', folders[2]],
                             cwd=script.parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines, last, names = queue.Queue(), None, sorted(f.name for f in folders[0])
    threading.Thread(target=lambda: [lines.put(x) for x in [*child.stdout, '']], daemon=True).start()
    reader = threading.Thread(target=child.stderr.read, daemon=True)
    reader.start()
    try:
        while True:
            line = lines.get(timeout=SECONDS_PER_ITEM)
            assert line, f'the reader died at {last and names[last]}'
            if line.startswith('{'):
                return json.loads(line)
            last = int(line)
    except queue.Empty:
        raise AssertionError(f'reading {last and names[last]} hangs') from None
    finally:
        child.kill()
        child.wait()


def test_there_are_enough(folders):
    broken = [f for f in folders[0] if f.kind != 'good']
    assert len(broken) >= 500 and len(folders[0]) - len(broken) >= 120
    assert len({f.broken for f in broken}) >= 490


def test_no_crash_no_hang_no_bomb(folders, outcomes):
    found = outcomes['outcomes']
    assert sorted(found) == sorted(f.name for f in folders[0]) and not outcomes['problems']
    assert not {name: x for name, x in found.items() if x[0] == 'crash'}
    assert outcomes['mib'] < MIB, 'a picture over the limit was unpacked'
    for file in folders[0]:
        what, value = found[file.name]
        if file.kind == 'refused':
            assert what == 'corrupt', file.name
        if file.kind == 'good' or file.kind == 'whole' and what == 'read':
            assert what == 'read' and value == zlib.crc32(decode_image(file.clean, file.name).tobytes()), file.name
        if what == 'corrupt':
            assert value and '\n' not in value and len(value) < 400, file.name
    reasons = [found[f.name][1] for f in folders[0] if f.kind == 'refused']
    for part in ('empty file', 'zero bytes', '12000 x 12000 is over the limit of 67108864 pixels', "b'<!DOCTYPE html>",
                 'it claims more than 178956970 pixels'):
        assert any(part in reason for reason in reasons), part


def epoch(folder, ledger=None, **settings):
    source = open_source(f'folder:{folder}')
    steps = 2 * len(source) // 64
    with train_iterator(source, batch_size=64, seed=5, transforms=AUGMENT, ledger=ledger, **settings) as batches:
        return [next(batches) for _ in range(steps)]


def test_good_items_keep_their_place_and_bad_ones_are_named(folders, outcomes, tmp_path):
    files, clean, broken = folders
    bad = {name for name, (what, _) in outcomes['outcomes'].items() if what == 'corrupt'}
    names = sorted(f.name for f in files)
    good = {i for i, name in enumerate(names) if next(f for f in files if f.name == name).kind == 'good'}
    expected, found = epoch(clean), epoch(broken, tmp_path / 'corrupt.jsonl', num_threads=3)
    ledger = [json.loads(line) for line in (tmp_path / 'corrupt.jsonl').read_text().splitlines()]
    named = {Path(entry['path']).name: entry for entry in ledger}
    assert len(named) == len(ledger)
    # The two strips of a million pixels are read, and refused by the resize that would make a gigabyte of them.
    strips = {name for name, entry in named.items() if 'resize(18) would make' in entry['reason']}
    assert len(strips) == 2 and bad | strips == set(named)
    compared = 0
    for old, new in zip(expected, found, strict=True):
        for row, item in enumerate(old['id'].tolist()):
            if item in good:
                assert new['id'][row] == item
                np.testing.assert_array_equal(old['image'][row], new['image'][row])
                compared += 1
            assert (new['id'][row] == item) == (names[item] not in named), 'replaced if and only if it is corrupt'
            assert names[new['id'][row]] not in named
    assert compared > 200
    for name, entry in named.items():
        assert entry['index'] == names.index(name) and entry['reason'] and entry['path'] == str(broken / name)
        assert name in strips or entry['reason'] == outcomes['outcomes'][name][1]


@pytest.mark.parametrize('shards', [2, 4])
def test_every_process_substitutes_alike(folders, outcomes, tmp_path, shards):
    """Each shard reads on its own and meets other corrupt items first; together they are the one global batch."""
    _, _, broken = folders
    whole = epoch(broken, tmp_path / 'whole.jsonl')
    parts = [epoch(broken, tmp_path / 'part.jsonl', shard_index=h, shard_count=shards, num_threads=h % 3)
             for h in range(shards)]
    for step, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[step][key] for part in parts]), batch[key])
    ledgers = [{json.loads(line)['path'] for line in path.read_text().splitlines()}
               for path in sorted(tmp_path.glob('part-*-of-*.jsonl'))]
    everything = {json.loads(line)['path'] for line in (tmp_path / 'whole.jsonl').read_text().splitlines()}
    assert len(ledgers) == shards and set.union(*ledgers) == everything
    assert all(ledger < everything for ledger in ledgers), 'no process met all of them: they differ in what they saw'
