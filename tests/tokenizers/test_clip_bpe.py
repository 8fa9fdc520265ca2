import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from gen_jax.tokenizers import ClipTokenizer, clip_bpe
from gen_jax.tokenizers.clip_bpe import merged
from tests.golden.make_clip_bpe import (
    FOLDER_STRINGS,
    FOLDERS,
    blocks,
    byte_vocabulary,
    digest,
    strings,
    write_folder,
)

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'clip_bpe.npz')
VOCAB = json.loads(str(GOLDEN['vocab']))
MERGES = [tuple(line.split(' ')) for line in str(GOLDEN['merges']).split('\n')]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """name -> a folder as published, with the part of CLIP's vocabulary that the strings use."""
    root = tmp_path_factory.mktemp('tokenizers')
    return {name: write_folder(root / name, VOCAB, MERGES, name) for name in FOLDERS}


@pytest.fixture(scope='module')
def plain(folders):
    return ClipTokenizer.from_files(folders['plain'])


def golden_ids(name):
    return np.split(GOLDEN[f'{name}/ids'], np.cumsum(GOLDEN[f'{name}/lengths'])[:-1])


def different(tokenizer, texts, golden):
    return [(text, tokenizer.ids(text), ids.tolist()) for text, ids in zip(texts, golden, strict=True)
            if tokenizer.ids(text) != ids.tolist()]


def test_ids_of_a_thousand_strings(plain):
    texts = strings()
    assert len(texts) == 1000 and len(set(texts)) > 980
    assert not different(plain, texts, golden_ids('plain'))


def test_decoding_of_a_thousand_strings(plain):
    texts = json.loads(str(GOLDEN['decoded']))
    assert [plain.decode(ids, skip_special_tokens=False) for ids in golden_ids('plain')] == texts
    words = plain.ids('A photo of  DOGS!')
    assert plain.decode([plain.bos_id, *words, plain.eos_id, plain.pad_id]) == 'a photo of dogs !'
    assert plain.decode([plain.bos_id, *words], skip_special_tokens=False) == '<|startoftext|>a photo of dogs !'
    assert plain.decode([plain.vocab['Ã']]) == '\ufffd' and plain.decode([plain.vocab['Ã'], plain.vocab['©']]) == 'é'
    with pytest.raises(ValueError, match='id 99999 is not in the vocabulary'):
        plain.decode([320, 99999])


def test_added_tokens_are_decoded(folders):
    tokenizer = ClipTokenizer.from_files(folders['listed'])
    assert tokenizer.decode(tokenizer.ids('a <MyCat> and MY\tdog!')) == 'a <MyCat>and my dog'


def batch(tokenizer, texts, length):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return tokenizer(texts, length)


@pytest.mark.parametrize('name', FOLDERS)
def test_published_folders(folders, name):
    """Names of special tokens, whether they are found in any case, padding and truncation, in all their spellings."""
    tokenizer = clip_bpe(folders[name])
    texts = strings() if name == 'plain' else FOLDER_STRINGS
    assert not different(tokenizer, texts, golden_ids(name))
    assert tokenizer.pad_id == GOLDEN[f'{name}/pad_id'] and tokenizer.max_length == (20 if name == 'listed' else 77)
    ids = batch(tokenizer, texts, 20)
    assert ids.dtype == np.int32 and ids.shape == (len(texts), 20)
    assert digest(ids) == str(GOLDEN[f'{name}/padded'])


def test_padding_differs_between_the_folders(folders):
    rows = {name: clip_bpe(folder, 8).encode('a dog').tolist() for name, folder in folders.items()}
    assert rows['sd1'] == rows['plain'] == [49406, 320, 1929, 49407, 49407, 49407, 49407, 49407]
    assert rows['sd2'] == rows['listed'] == [49406, 320, 1929, 49407, 0, 0, 0, 0]


@pytest.fixture(scope='module')
def cut_characters():
    """How a vocabulary of bytes alone cuts every character: a '</w>' stands where a word ends."""
    tokenizer = ClipTokenizer(byte_vocabulary(), [])

    def compare(first, last):
        for i, text in enumerate(blocks(last)):
            if i * 4096 >= first:
                assert digest(tokenizer.ids(text)) == GOLDEN['characters'][i], hex(i * 4096)
                tokenizer._known.clear()
    return compare


def test_every_character_of_the_basic_plane(cut_characters):
    cut_characters(0, 0x10000)


@pytest.mark.slow
@pytest.mark.parametrize('first, last', [(0x10000, 0x40000), (0xE0000, 0xE2000)])
def test_every_other_plane_that_has_characters(cut_characters, first, last):
    cut_characters(first, last)


def test_one_file_instead_of_two(folders, tmp_path):
    """tokenizer.json, with merges as strings or as pairs, wins over the two files, as in transformers."""
    whole = ClipTokenizer.from_files(folders['sd2'])
    added = [{'id': i, 'content': text, 'single_word': False, 'lstrip': False, 'rstrip': False,
              'normalized': token.normalized, 'special': True} for text, i in
             [('!', 0), ('<|startoftext|>', 49406), ('<|endoftext|>', 49407)] for token in [whole.added[text]]]
    for merges in ([' '.join(pair) for pair in MERGES], MERGES):
        model = {'type': 'BPE', 'end_of_word_suffix': '</w>', 'vocab': VOCAB, 'merges': merges}
        (tmp_path / 'tokenizer.json').write_text(json.dumps({'model': model, 'added_tokens': added}))
        (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'pad_token': '!'}))
        (tmp_path / 'vocab.json').write_text('not read')
        found = ClipTokenizer.from_files(tmp_path)
        assert found.fingerprint == whole.fingerprint
        assert not different(found, FOLDER_STRINGS, golden_ids('sd2'))


def test_too_long_is_cut_aloud_and_keeps_its_end(plain):
    text = ' '.join(['a'] * 5 + ['portrait', 'CAT'])
    assert plain.truncated(text, 7) == 'portrait cat' and plain.truncated(text) == ''
    with pytest.warns(UserWarning, match="text of 9 tokens exceeds max_length 7; cut off: 'portrait cat'"):
        ids = plain.encode(text, 7)
    assert ids.tolist() == [49406, *[320] * 5, 49407]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert plain([text], 9).shape == (1, 9) and plain(['a ' * 75]).shape == (1, 77)
    with pytest.warns(UserWarning, match='text of 78 tokens'):
        plain(['a ' * 76])
    assert plain([]).shape == (0, 77)


def test_merges_happen_in_the_order_of_the_list():
    def merge(word, *pairs):
        return merged(list(word), {tuple(pair.split()): rank for rank, pair in enumerate(pairs)})

    assert merge('abc', 'b c', 'a b') == ['a', 'bc']
    assert merge('abc', 'a b', 'b c') == ['ab', 'c']
    assert merge('aaaaa', 'a a', 'aa aa') == ['aaaa', 'a']
    assert merge('abab', 'a b', 'ab ab') == ['abab'] and merge('', 'a b') == []
    # A later rank becomes possible only by an earlier one, on the left of it.
    assert merge('xaby', 'a b', 'x ab', 'xab y') == ['xaby']


def test_a_very_long_word_takes_no_square_of_its_length(plain):
    ids = plain.ids('in' * 30_000)
    assert len(ids) <= 30_000 and plain.decode(ids) == 'in' * 30_000


def test_it_travels_to_worker_processes(plain, folders):
    copy = pickle.loads(pickle.dumps(plain))
    assert copy.fingerprint == plain.fingerprint != ClipTokenizer.from_files(folders['sd2']).fingerprint
    assert copy.ids('a photo') == plain.ids('a photo') and plain.vocab_size == 49408


def test_a_symbol_outside_of_the_vocabulary():
    vocab = {'a</w>': 0, '<|startoftext|>': 1, '<|endoftext|>': 2, 'b': 3}
    tokenizer = ClipTokenizer(vocab, [], max_length=6)
    assert tokenizer.encode('a ba c').tolist() == [1, 0, 3, 0, 2, 2]


def test_bad_input(plain):
    with pytest.raises(TypeError, match='pass a list of texts'):
        plain('a dog')
    with pytest.raises(ValueError, match='half of a surrogate pair'):
        plain.ids('a \ud800 b')
    for length in (1, 0):
        with pytest.raises(ValueError, match=f'max_length {length} leaves no room'):
            plain(['a'], length)
    with pytest.raises(ValueError, match=r"pad_token '\[PAD\]' is not in the vocabulary"):
        ClipTokenizer(VOCAB, MERGES, pad_token='[PAD]')
    with pytest.raises(ValueError, match="1 of 1 merges are about tokens that the vocabulary lacks, such as 'q zz'"):
        ClipTokenizer(VOCAB, [('q', 'zz')])


@pytest.mark.parametrize('name, content, message', [
    ('vocab.json', None, 'has no vocab.json; a CLIP tokenizer is vocab.json and merges.txt, or tokenizer.json'),
    ('merges.txt', None, 'has no merges.txt'),
    ('merges.txt', '#version: 0.2\na b c\n', "line 'a b c' is no pair of tokens"),
    ('vocab.json', '{"a": 1', 'vocab.json is no JSON'),
    ('tokenizer.json', '{"model": {"type": "WordPiece"}}', 'holds no byte pair encoding with the word end </w>'),
    ('tokenizer_config.json', '{"tokenizer_class": "T5Tokenizer"}', 'holds a T5Tokenizer, not a CLIPTokenizer'),
    ('tokenizer_config.json', '{"pad_token": "[PAD]"}', r"pad_token '\[PAD\]' is not in the vocabulary of 1475 tokens"),
    ('tokenizer_config.json', '{"added_tokens_decoder": {"0": {"content": "!", "lstrip": true}}}',
     "added token '!' has lstrip, which is not implemented"),
])
def test_bad_files(tmp_path, name, content, message):
    write_folder(tmp_path, VOCAB, MERGES, 'plain')
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        ClipTokenizer.from_files(tmp_path)
