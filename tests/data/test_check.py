"""gen-jax data check: everything that a training would meet, found in one go; exit codes 0, 1 and 2."""

import io
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

from gen_jax.cli import main as cli
from gen_jax.data.cached import write_cache
from gen_jax.data.check import check, is_clean, summary
from gen_jax.data.sources import open_source
from tests.data.mutations import encode, picture
from tests.data.test_tfds import png, prepare


def write(path, data=None, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture(seed), 'PNG', **options) if data is None else data)


@pytest.fixture
def root(tmp_path):
    """Two classes of three pictures, all alike in size."""
    for i in range(6):
        write(tmp_path / 'train' / ('cat', 'dog')[i % 2] / f'{i}.png', seed=i)
    return tmp_path / 'train'


def run(capsys, *argv):
    code = cli.main(['data', 'check', *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_clean_folder(root, capsys):
    code, out, err = run(capsys, root)
    assert code == 0 and not err
    assert out.splitlines() == [f"6 of 6 items of {root}, split 'train', are good", 'kinds: 6 PNG RGB',
                                'sizes (height x width): 1 in all, from 20 x 24 to 20 x 24; most often 20 x 24 (6)',
                                'classes: 2; cat 3, dog 3']
    assert run(capsys, root.parent)[0] == run(capsys, f'folder:{root}', '--threads', 1)[0] == 0


def test_what_is_bad_is_listed_whole(root, tmp_path, capsys):
    write(root / 'cat' / 'page.jpg', b'<!DOCTYPE html>')
    write(root / 'dog' / 'new\nline.png', b'')
    (root / 'dog' / 'gone.png').symlink_to('nowhere')
    code, out, _ = run(capsys, root.parent, '--json')
    report = json.loads(out)
    assert code == 1 and (report['items'], report['good']) == (9, 6)
    assert [(e['path'], e['index']) for e in report['bad']] == [
        (str(root / 'cat' / 'page.jpg'), 3), (str(root / 'dog' / 'gone.png'), 7),
        (str(root / 'dog' / 'new\nline.png'), 8)]
    for entry, part in zip(report['bad'], ("begins with b'<!DOCTYPE", 'which is not there', 'empty file'), strict=True):
        assert part in entry['reason']
    code, out, _ = run(capsys, root.parent)
    assert code == 1 and out.startswith('6 of 9 items') and out.count('\n  bad: ') == 3 and 'new\\nline.png' in out


def test_damage_behind_the_first_frame(root, capsys):
    """A training reads the first frame alone; counting the others must not end the check."""
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    for kind in ('GIF', 'TIFF'):
        whole = io.BytesIO()
        frames[0].save(whole, kind, save_all=True, append_images=frames[1:])
        data = whole.getvalue()
        for k in range(12):  # the end missing; or overwritten
            cut = len(data) * (k // 2 + 6) // 12
            write(root / 'cat' / f'{kind}-{k}.{kind.lower()}', data[:cut] + b'\x07' * (len(data) - cut) * (k % 2))
    report = check(str(root))
    several = sum(n for kind, n in report['kinds'].items() if 'first of several frames' in kind)
    assert several >= 12 and len(report['bad']) + several == 24


def test_metadata_that_is_no_file_is_not_opened(root, capsys):
    """A pipe would be waited for, a device read for ever."""
    os.mkfifo(root / 'metadata.jsonl')
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('the pipe was opened'))
    signal.alarm(60)
    assert 'metadata.jsonl: a named pipe, not a file' in check(str(root))['problems'][0]
    for target in ('/dev/zero', 'nowhere'):
        (root / 'metadata.jsonl').unlink()
        (root / 'metadata.jsonl').symlink_to(target)
        code, out, _ = run(capsys, root)
        assert code == 1 and ('a device, not a file' in out or "a link to 'nowhere', which is not there" in out)
        with pytest.raises(ValueError, match='metadata.jsonl: a '):
            open_source(f'folder:{root}')
    signal.alarm(0)


def test_a_folder_with_a_colon_in_its_name(root, capsys):
    assert run(capsys, root.rename(root.with_name('a:b')))[0] == 0
    assert run(capsys, 'foldr:x')[0] == 2


def test_nothing_readable_is_a_report_too(tmp_path, capsys):
    write(tmp_path / 'a.png', b'x')
    code, out, _ = run(capsys, tmp_path)
    assert code == 1 and out.startswith('0 of 1 items')


def test_a_file_that_cannot_be_read_is_bad(root, monkeypatch):
    def denied(path):
        raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr('gen_jax.data.folder.Path.read_bytes', denied)
    report = check(str(root), threads=1)
    assert len(report['bad']) == 6 and report['bad'][0]['reason'] == 'cannot be read: Permission denied'


def test_notes(root, capsys):
    write(root / 'cat' / 'copy.png', encode(picture(1), 'BMP'))  # the same pixels in another container
    write(root / 'dog' / 'grey.png', encode(picture(1)[..., 0][:9], 'PNG'))
    write(root / 'notes.txt', b'x')
    (root / 'owl').mkdir()
    write(root.parent / 'test' / 'bat' / '1.png')
    os.replace(root / 'cat' / '0.png', root.parent / 'moved.png')
    (root / 'cat' / '0.png').symlink_to(root.parent / 'moved.png')
    report = check(str(root.parent))
    assert is_clean(report) and report['kinds'] == {'PNG RGB': 6, 'BMP RGB': 1, 'PNG L': 1}
    assert report['sizes'] == {'distinct': 2, 'smallest': [9, 24], 'largest': [20, 24],
                               'common': [[20, 24, 7], [9, 24, 1]]}
    assert report['classes'] == {'bat': 0, 'cat': 4, 'dog': 4}
    assert report['duplicates'] == [[str(root / 'cat' / 'copy.png'), str(root / 'dog' / '1.png')]]
    assert report['notes'] == [
        'the pictures differ in size: set data.options.image_size, or resize and crop in data.transforms',
        '1 classes have no readable picture in this split: bat', '1 pictures are copies of another one',
        '1 groups of equal pictures carry different labels',
        '1 files are not read, by their extension: 1 .txt', '1 sub-folders hold no picture: owl',
        '1 pictures lie beside the folders of the splits: they are not read', '1 pictures are links out of the folder']
    assert all(note in summary(report) for note in report['notes'])
    assert 'differ in size' not in str(check(str(root.parent), options={'image_size': 8})['notes'])
    assert 'differ in size' not in str(check(str(root.parent), resized=True)['notes'])


def test_metadata_problems_and_captions(tmp_path, capsys):
    for name in 'abc':
        write(tmp_path / f'{name}.png', seed=ord(name))
    lines = [{'file_name': 'a.png', 'text': 'one'}, {'file_name': 'b.png', 'text': ' '},
             {'file_name': 'c.png', 'text': ['two', 'three']}]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    report = check(str(tmp_path))
    assert is_clean(report) and report['captions'] == {'with': 2, 'without': 1} and not report['problems']
    assert report['notes'] == ['1 captions are empty'] and report['classes'] is None
    (tmp_path / 'metadata.jsonl').write_text('nonsense\n{"file_name": "../x.png", "text": "x"}\n'
                                             + json.dumps(lines[0]))
    code, out, _ = run(capsys, tmp_path)
    assert code == 1 and out.startswith('3 of 3 items') and out.count('\n  problem: ') == 3
    assert 'line 1: not JSON' in out and 'line 2: file_name' in out and '2 images have no line' in out
    for labels in (['cat', 'dog', 'dog'], [[1, 2], [0], [1]], [0.5, 1.5, 2.5]):  # beside a bad line; of no kind known
        lines = [json.dumps({'file_name': f'{n}.png', 'label': x}) for n, x in zip('abc', labels, strict=True)]
        (tmp_path / 'metadata.jsonl').write_text('\n'.join(['nonsense'] * (labels[0] == 'cat') + lines))
        code, out, err = run(capsys, tmp_path)
        assert code == 1 and out.startswith('3 of 3 items') and out.count('\n  problem: ') == 1 and not err


def test_other_sources(tmp_path, capsys):
    code, out, _ = run(capsys, 'digits', '--split', 'test')
    assert code == 0 and out.startswith('297 of 297 items of digits') and '297 grey' in out
    prepare(tmp_path, png=lambda i: png(i)[:50] if i == 2 else png(i % 6))
    options = f"--config.data.options={{'data_dir': '{tmp_path}'}}"
    code, out, _ = run(capsys, 'tfds:tiny', options)
    assert code == 1 and out.startswith('6 of 7 items of tfds:tiny') and 'bad: tfds:tiny/1.0.0#train[2]: trunc' in out
    assert 'equal: tfds:tiny/1.0.0#train[0], tfds:tiny/1.0.0#train[6]' in out
    assert 'classes: 3; cow 1, bee 2, ant 3' in out and 'captions: 6 items have one' in out
    report = check('tfds:tiny', options={'data_dir': str(tmp_path)})
    assert [entry['index'] for entry in report['bad']] == [2]


def test_bad_input_is_exit_code_2(root, tmp_path, capsys):
    (tmp_path / 'none').mkdir()
    for argv, message in (([tmp_path / 'no'], 'is neither a folder nor a data source'), ([], 'needs an action and'),
                          ([root, '--split', 'test'], "has no split 'test'"), ([tmp_path / 'none'], 'it is empty'),
                          (['shapes', '--config.data.options={"imagesize": 8}'], "has no option 'imagesize'"),
                          ([root, '--config.data.options={"imagesize": 8}'], 'imagesize'),
                          ([root, '--threads', '0'], 'threads=0'), (['folder:'], 'unknown data source'),
                          ([root, '--config.data.max=3'], 'unknown config key')):
        code, out, err = run(capsys, *argv)
        assert code == 2 and message in err and not out, argv
    assert cli.main(['data']) == 2


def test_help(capsys):
    assert cli.main(['data', '--help']) == 0
    out = capsys.readouterr().out
    assert 'gen-jax data check /data/flowers' in out and 'exit codes: 0 clean; 1 bad items' in out
    assert cli.main(['--help']) == 0
    assert 'read a data source through' in capsys.readouterr().out


def test_latents_are_checked_too(tmp_path):
    mean = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype(np.float32)
    mean[3, 0, 0, 0] = np.nan
    mean[4] = mean[1]
    batch = {'mean': mean, 'caption': np.array(['a', '', 'b', 'c', 'a'])}
    write_cache(tmp_path, 'train', [batch], length=5, made_by={}, info={})
    report = check(f'cached:{tmp_path}')
    assert [(b['index'], b['reason']) for b in report['bad']] == [(3, "'mean' holds NaN or infinity")]
    assert report['kinds'] == {'mean [2, 2, 3]': 4} and report['duplicates'] == [['1', '4']]
    assert report['classes'] is None and report['captions'] == {'with': 3, 'without': 1}
    assert summary(report).startswith('4 of 5 items')
