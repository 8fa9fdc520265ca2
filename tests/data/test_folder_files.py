"""What may lie in a folder beside pictures (links, pipes, odd names), and the fingerprint of its files."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

from gen_jax.config import base_config
from gen_jax.data import listing
from gen_jax.data.fingerprint import FingerprintError, check_fingerprint
from gen_jax.data.folder import open_folder
from gen_jax.data.ledger import CorruptItem
from gen_jax.data.pipeline import fingerprint, train_iterator
from gen_jax.data.sources import open_source
from gen_jax.engine.resume import config_changes
from tests.data.mutations import encode, picture


def write(path, seed=0, kind='PNG'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture(seed), kind))
    return path


ODD = ('-rf.png', '--help.png', "it's.png", 'a "b".png', 'new\nline.png', 'tab\t.png', 'ünïcödé-图片.png', '🙂.png',
       ' .png', '%s%n{0}.png', '$(x)`y`.png', ';&|.png', 'a.b.PNG', 'SHOUT.JPG', '\u202eright.png', 'x' * 251 + '.png',
       '~.png', '*?[a].png', '..png.png', 'C:\\x.png', os.fsdecode(b'latin-\xe9.png'))


def test_odd_names(tmp_path):
    root = tmp_path / 'data'
    for i, name in enumerate(ODD):
        write(root / name, i, 'JPEG' if name.endswith('JPG') else 'PNG')
    kept = [name for name in ODD if not name.startswith('.')]
    source = open_source(f'folder:{root}')
    assert source.names == sorted(kept)
    for i, name in enumerate(source.names):
        if not name.endswith('JPG'):
            np.testing.assert_array_equal(source[i]['image'], picture(ODD.index(name)))
    victims = sorted(kept)[::3]
    for name in victims:
        (root / name).write_bytes(b'x')
    with train_iterator(open_source(f'folder:{root}'), batch_size=len(kept), seed=0,
                        ledger=tmp_path / 'corrupt.jsonl') as batches:
        next(batches)
        assert json.loads(json.dumps(batches.fingerprint)) == batches.fingerprint
    entries = [json.loads(line) for line in (tmp_path / 'corrupt.jsonl').read_text().splitlines()]
    assert sorted(os.path.relpath(entry['path'], root) for entry in entries) == victims


def test_odd_names_in_metadata(tmp_path):
    names = [name for name in ODD if not name.startswith('.') and '\\' not in name and name.isascii()]
    for name in names:
        write(tmp_path / name, 0, 'JPEG' if name.endswith('JPG') else 'PNG')
    (tmp_path / 'metadata.jsonl').write_text(''.join(json.dumps({'file_name': n, 'text': n}) + '\n' for n in names))
    source = open_source(f'folder:{tmp_path}')
    assert [source[i]['caption'] for i in range(len(source))] == sorted(names)


def test_links_pipes_and_what_is_hidden(tmp_path):
    """A link to nothing, a loop, a pipe and a device keep their places, are named, and are never opened."""
    root, away = tmp_path / 'data', tmp_path / 'away'
    write(root / 'a.png', 1)
    write(away / 'x.png', 2)
    write(away / 'deep' / 'y.png', 3)
    (root / 'gone.png').symlink_to('nowhere.png')
    (root / 'linked.png').symlink_to(away / 'x.png')
    (root / 'loop.png').symlink_to('loop.png')
    (root / 'null.png').symlink_to('/dev/zero')
    (root / 'folder.png').symlink_to(away)
    (root / 'sub').mkdir()
    (root / 'sub' / 'up').symlink_to(root)
    (root / 'sub' / 'again').symlink_to(away)
    (root / 'empty.png').mkdir()
    write(root / '.hidden.png')
    write(root / '.git' / 'z.png')
    (root / 'Thumbs.db').write_bytes(b'x')
    os.mkfifo(root / 'pipe.png')
    with open(root / 'sparse.png', 'wb') as file:
        file.truncate(10**11)
    (root / 'metadata.jsonl').write_text('')
    source, _ = open_folder(str(root))
    assert source.names == ['a.png', 'gone.png', 'linked.png', 'loop.png', 'null.png', 'pipe.png', 'sparse.png',
                            'sub/again/deep/y.png', 'sub/again/x.png']
    reasons = {}
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('a pipe was opened, and waits for ever'))
    signal.alarm(60)
    for i, name in enumerate(source.names):
        try:
            source[i]
        except CorruptItem as error:
            reasons[name] = error.reason
    signal.alarm(0)
    assert set(reasons) == {'gone.png', 'loop.png', 'null.png', 'pipe.png', 'sparse.png'}
    for name, part in (('gone', "link to 'nowhere.png', which is not there"), ('loop', 'a loop of links'),
                       ('null', 'a device, not a file'), ('pipe', 'a named pipe'), ('sparse', '100000000000 bytes')):
        assert part in reasons[f'{name}.png']
    np.testing.assert_array_equal(source[2]['image'], picture(2))
    assert source.fingerprint['digest'] == 'content', 'a file that is not read does not count'


def test_many_crossing_links_end(tmp_path):
    """Ten folders with links to each other: ten places, not ten factorial."""
    for i in range(10):
        write(tmp_path / f'{i}' / 'x.png', i)
    for i in range(10):
        for j in range(10):
            (tmp_path / f'{i}' / f'to{j}').symlink_to(tmp_path / f'{j}')
    assert len(listing.list_files(tmp_path)) == 10


def test_a_link_to_a_class_takes_nothing_from_it(tmp_path):
    write(tmp_path / 'dog' / '1.png')
    write(tmp_path / 'cat' / '1.png')
    (tmp_path / 'alias').symlink_to(tmp_path / 'dog')
    source = open_source(f'folder:{tmp_path}')
    assert source.names == ['cat/1.png', 'dog/1.png'] and source.info['label_names'] == ['cat', 'dog']


def test_what_cannot_be_read_stops_the_run(tmp_path, monkeypatch):
    """Permissions and lost drives may pass, and must not change what the model sees: an error with the name."""
    path = write(tmp_path / 'cat' / '1.png')
    write(tmp_path / 'cat' / '2.png')
    source = open_source(f'folder:{tmp_path}')
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        monkeypatch.setattr('gen_jax.data.folder.Path.read_bytes', lambda p: open(p / 'x'))
        with pytest.raises(NotADirectoryError, match='1.png'):
            source[0]
    else:
        with pytest.raises(PermissionError, match='1.png'):
            source[0]
    monkeypatch.undo()

    def denied(path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'scandir', denied)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        listing.list_files(tmp_path)


@pytest.fixture
def data(tmp_path):
    for i in range(12):
        write(tmp_path / 'data' / 'ab'[i % 2] / f'{i:02d}.bmp', i, 'BMP')
    return tmp_path / 'data'


def of(path, **options):
    return json.loads(json.dumps(fingerprint(open_source(f'folder:{path}', **options), seed=0, batch_size=4)))


def difference(old, new):
    with pytest.raises(FingerprintError) as caught:
        check_fingerprint(old, new)
    return str(caught.value)


def test_a_moved_or_copied_folder_is_the_same_data(data, tmp_path):
    old = of(data)
    shutil.copytree(data, tmp_path / 'copy', copy_function=shutil.copyfile)  # new times
    check_fingerprint(old, of(tmp_path / 'copy'))
    for path in data.rglob('*.bmp'):
        os.utime(path, (1, 1))
    check_fingerprint(old, of(data))
    data.rename(tmp_path / 'moved')
    check_fingerprint(old, of(tmp_path / 'moved'))


def test_a_run_may_go_on_where_its_data_were_moved():
    """The config allows another place; whether the data are the same is for their fingerprint to say."""
    def changes(source, options=None):
        old, new = base_config(), base_config()
        old.data.source, old.data.options = 'folder:/old', {'data_dir': '/old', 'image_size': 8}
        new.data.source, new.data.options = source, {'data_dir': '/new', 'image_size': 8, **(options or {})}
        return set(config_changes(old, new))

    assert changes('folder:/new') == set()
    assert changes('digits') == {'data.source'}
    assert changes('folder:/new', {'image_size': 16}) == {'data.options.image_size'}


def test_the_files_that_differ_are_named(data):
    old = of(data)
    edited = data / 'a' / '02.bmp'
    content = bytearray(edited.read_bytes())
    content[-1] ^= 1  # a pixel, and neither the size nor the time
    times = edited.stat()
    edited.write_bytes(content)
    os.utime(edited, ns=(times.st_atime_ns, times.st_mtime_ns))
    message = difference(old, of(data))
    assert 'source: a/02.bmp has other content' in message and message.count('.bmp') == 1
    assert 'restore the data' in message and 'sha256' not in message and 'listing' not in message
    content[-1] ^= 1
    edited.write_bytes(content)
    check_fingerprint(old, of(data))
    (data / 'b' / '11.bmp').rename(data / 'b' / '99.bmp')
    message = difference(old, of(data))
    assert 'source: b/11.bmp is gone' in message and 'source: b/99.bmp is new' in message
    (data / 'b' / '99.bmp').rename(data / 'a' / '99.bmp')  # another class
    assert 'a/99.bmp is new' in difference(old, of(data))
    (data / 'a' / '99.bmp').unlink()
    message = difference(old, of(data))
    assert 'source.images: was 12, is 11' in message and 'b/11.bmp is gone' in message


def test_two_files_that_change_places_are_named(data):
    old = of(data)
    a, b = (data / 'a' / name for name in ('00.bmp', '04.bmp'))
    a.rename(data / 'x'), b.rename(a), (data / 'x').rename(b)
    message = difference(old, of(data))
    assert 'a/00.bmp has other content' in message and 'a/04.bmp has other content' in message


def test_other_metadata_is_named(tmp_path):
    for name in ('a.png', 'b.png'):
        write(tmp_path / name)

    def book(*captions):
        lines = [json.dumps({'file_name': f'{n}.png', 'text': c}) for n, c in zip('ab', captions, strict=True)]
        (tmp_path / 'metadata.jsonl').write_text('\n'.join(lines))
        return of(tmp_path)

    message = difference(book('a cat', 'a dog'), book('a cat', 'a dot'))
    assert 'source: b.png has other metadata' in message and 'a.png' not in message


def test_many_changes_are_counted(data):
    old = of(data)
    for path in data.rglob('*.bmp'):
        path.write_bytes(path.read_bytes() + b'x')
    message = difference(old, of(data))
    assert message.count('has other content') == 5 and 'source: and 7 more' in message


def test_sizes_only(data, monkeypatch):
    """What a folder of over a GiB is told apart by: names and sizes; reading all of it is one option away."""
    def edit():
        path = data / 'a' / '02.bmp'
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    for options, seen in (({'digest': 'sizes'}, False), ({'digest': 'content'}, True), ({}, False)):
        monkeypatch.setattr(listing, 'CONTENT_BYTES', 100)
        old = of(data, **options)
        edit()
        assert (of(data, **options) != old) == seen
        with (data / 'a' / '00.bmp').open('ab') as file:
            file.write(b'x')
        assert 'a/00.bmp has other content' in difference(old, of(data, **options))
    with pytest.raises(ValueError, match="digest='all' is not one of"):
        open_source(f'folder:{data}', digest='all')


def test_a_large_folder_names_a_run_of_files(tmp_path):
    """The fingerprint of 10,000 files stays small, and one more file moves no other run."""
    names = [f'{i // 100:03d}/{i:05d}.png' for i in range(10_000)]
    entries = [listing.Entry(100 + i % 7) for i in range(10_000)]
    old = listing.file_digests(tmp_path, names, entries, None, 'sizes')
    assert 500 < len(old['files']) <= 2048 and len(json.dumps(old)) < 100_000
    assert sum(int(run.split()[0]) for run in old['files'].values()) == 10_000
    names.insert(5000, '049/05000-more.png')
    new = listing.file_digests(tmp_path, names, [*entries[:5000], listing.Entry(5), *entries[5000:]], None, 'sizes')
    changed = {name for name in {*old['files'], *new['files']} if old['files'].get(name) != new['files'].get(name)}
    assert 1 <= len(changed) <= 2
    message = difference(*({'source': x, 'sha256': x['listing']} for x in (old, new)))
    assert 'files from 04' in message or 'is new' in message
