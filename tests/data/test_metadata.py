"""metadata.jsonl from elsewhere: every problem is named by file, line and remedy, and nothing leads out."""

import json

import numpy as np
import pytest

from gen_jax.data.folder import open_folder
from gen_jax.data.sources import open_source
from tests.data.mutations import encode, picture

NAMES = ('a.png', 'b.png', 'c.png')
ROWS = [{'file_name': name, 'text': f'naïve {name}', 'label': 'xyz'[i], 'n': i, 'score': i / 2, 'tags': ['u', 'v']}
        for i, name in enumerate(NAMES)]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'data'
    root.mkdir()
    (tmp_path / 'secret.png').write_bytes(encode(picture(9), 'PNG'))
    for i, name in enumerate(NAMES):
        (root / name).write_bytes(encode(picture(i), 'PNG'))

    def write(content):
        if not isinstance(content, bytes):
            content = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in content).encode()
        (root / 'metadata.jsonl').write_bytes(content)
        return root
    return write


def changed(**columns):
    return [ROWS[0], {**ROWS[1], **columns}, ROWS[2]]


def without(key):
    return [ROWS[0], {k: v for k, v in ROWS[1].items() if k != key}, ROWS[2]]


BAD = {
    'parent': (changed(file_name='../secret.png'), 'line 2: file_name .* leaves the folder'),
    'winding': (changed(file_name='x/../../secret.png'), 'line 2: .* leaves the folder'),
    'absolute': (changed(file_name='/etc/passwd'), 'line 2: .* leaves the folder'),
    'home': (changed(file_name='~/b.png'), 'line 2: there is no file'),
    'backslashes': (changed(file_name='..\\secret.png'), 'line 2: .* leaves the folder'),
    'drive': (changed(file_name='C:/b.png'), 'line 2: .* leaves the folder'),
    'address': (changed(file_name='file:///etc/passwd'), 'line 2: .* leaves the folder'),
    'dot': (changed(file_name='.'), 'line 2: .* leaves the folder'),
    'null byte': (changed(file_name='b.png\0'), 'line 2: there is no file'),
    'surrogate': (changed(file_name='\ud800.png'), 'line 2: '),
    'missing': (changed(file_name='gone.png'), 'line 2: there is no file .*gone.png'),
    'itself': (changed(file_name='metadata.jsonl'), 'line 2: .* does not end like a picture'),
    'twice': (changed(file_name='./a.png'), "line 2: './a.png' has a line already"),
    'empty name': (changed(file_name=''), 'line 2: no "file_name"'),
    'number': (changed(file_name=3), 'line 2: no "file_name"'),
    'no name': (without('file_name'), 'line 2: no "file_name"'),
    'list': ([ROWS[0], ['b.png'], ROWS[2]], 'line 2: no "file_name"'),
    'null': ([ROWS[0], None, ROWS[2]], 'line 2: no "file_name"'),
    'less columns': (without('n'), 'line 2: its columns .* differ'),
    'more columns': (changed(more=1), 'line 2: its columns .* differ'),
    'image': ([{**row, 'image': 'x'} for row in ROWS], 'line 1: a column may not be called "image"'),
    'mixed': (changed(n='one'), "line 2: column 'n' holds text here and numbers before"),
    'no number': (changed(n=None), "line 2: column 'n' holds text"),
    'true': (changed(n=True), "line 2: column 'n' holds true or false"),
    'large': (changed(n=2**31), "line 2: column 'n': 2147483648 does not fit"),
    'enormous': (changed(n=10**400), "line 2: column 'n': 1000"),
    'infinite': (json.dumps(ROWS[0]).replace('0.0', '1e999').encode(), "line 1: column 'score': inf does not fit"),
    'nan': (changed(score=float('nan')), 'line 2: not JSON .*NaN'),
    'digits': (b'{"file_name": "a.png", "n": ' + b'9' * 9999 + b'}', 'line 1: not JSON'),
    'deep': (b'{"file_name": ' + b'[' * 10**6, 'line 1: not JSON'),
    'torn': (json.dumps(ROWS[0]).encode()[:-5], 'line 1: not JSON'),
    'latin-1': (json.dumps(ROWS[0], ensure_ascii=False).encode('latin-1'), 'line 1: not UTF-8'),
    'utf-16': (json.dumps(ROWS[0]).encode('utf-16'), 'line 1: not UTF-8'),
    'array': (json.dumps(ROWS).encode(), 'line 1: no "file_name"'),
    'pretty': (json.dumps(ROWS[0], indent=1).encode(), 'line 1: not JSON'),
    'csv': (b'file_name,text\na.png,x\n', 'line 1: not JSON'),
    'carriage returns': (b'\r'.join(json.dumps(row).encode() for row in ROWS), 'line 1: not JSON'),
    'picture': (encode(picture(0), 'PNG'), 'line 1: not UTF-8'),
    'empty': (b'', '3 images have no line .* the first: a.png'),
    'blank': (b'\n \r\n\n', '3 images have no line'),
    'too few': (ROWS[:2], '1 images have no line .* the first: c.png'),
    'negative label': ([{**row, 'label': -1} for row in ROWS], 'all names or all integers'),
    'null label': ([{**row, 'label': None} for row in ROWS], 'all names or all integers'),
    'huge label': ([{**row, 'label': 2**30} for row in ROWS], 'goes up to 1073741824; number the classes from 0'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_lines_are_named(folder, name):
    content, message = BAD[name]
    try:
        root = folder(content)
    except UnicodeEncodeError:  # half a surrogate pair is JSON only as an escape
        root = folder(''.join(json.dumps(row) + '\n' for row in content).encode())
    with pytest.raises(ValueError, match=message) as caught:
        open_source(f'folder:{root}')
    assert 'metadata.jsonl' in str(caught.value) and len(str(caught.value)) < 1500


PLAIN = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ROWS).encode()


@pytest.mark.parametrize('content', [
    PLAIN, b'\xef\xbb\xbf' + PLAIN, PLAIN.replace(b'\n', b'\r\n'), PLAIN.replace(b'\n', b'\n\n  \n'), PLAIN[:-1],
    b''.join(reversed(PLAIN.splitlines(True))), PLAIN.replace(b'"a.png"', b'"./a.png"'),
    PLAIN.replace(b'"a.png"', rb'"\u0061.png"'), json.dumps({**ROWS[0], 'tags': 'x' * 10**7}).encode() + b'\n'
    + b''.join(PLAIN.splitlines(True)[1:]),
], ids=['plain', 'BOM', 'CRLF', 'blank lines', 'no last newline', 'other order', './', 'escapes', 'huge line'])
def test_what_is_legal_is_read(folder, content):
    source = open_source(f'folder:{folder(content)}')
    for i in range(3):
        item = source[i]
        np.testing.assert_array_equal(item['image'], picture(i))
        assert item['caption'] == f'naïve {NAMES[i]}' and 'text' not in item and 'file_name' not in item
        assert (item['label'], item['n'], item['score']) == (i, i, i / 2)
        assert item['n'].dtype == np.int32 and item['score'].dtype == np.float32
    assert source.info['label_names'] == ['x', 'y', 'z']


def test_every_problem_is_found_in_one_go(folder):
    rows = [{**ROWS[0], 'n': 2**40}, {**ROWS[1], 'file_name': '../secret.png'}, ROWS[2], {'file_name': 'gone.png'}]
    source, problems = open_folder(str(folder(rows)))
    assert len(source) == 3 and len(problems) == 4
    for problem, part in zip(problems, ("line 1: column 'n'", 'line 2: file_name', 'line 4: there is no file',
                                        '1 images have no line'), strict=True):
        assert part in problem
    with pytest.raises(ValueError, match=r'line 1: .*\(and 3 more: gen-jax data check shows them\)'):
        open_source(f'folder:{folder(rows)}')


def test_random_damage_is_read_or_named(folder):
    """200 damaged metadata files: three rows as they were, or other rows, or one ValueError; nothing else."""
    rng, read = np.random.default_rng(0), 0
    for _ in range(200):
        data = bytearray(PLAIN)
        a, b = sorted(rng.integers(0, len(data), 2))
        kind = int(rng.integers(5))
        if kind == 0:
            data = data[:a]
        elif kind == 1:
            data[a] ^= int(rng.integers(1, 256))
        elif kind == 2:
            data[a:a] = rng.bytes(3)
        elif kind == 3:
            del data[a:b]
        else:
            data[a:a] = data[a:b]
        root = folder(bytes(data))
        try:
            source = open_source(f'folder:{root}')
        except ValueError as error:
            assert str(root) in str(error) and type(error) is ValueError
            continue
        read += 1
        assert source.names == list(NAMES)
        for i in range(3):
            np.testing.assert_array_equal(source[i]['image'], picture(i))
    assert 1 < read < 100
