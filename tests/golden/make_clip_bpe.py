"""Prints the ids that transformers' CLIPTokenizer gives to a thousand strings: clip_bpe.npz.

Needs transformers 5.23: `PYTHONPATH=. python tests/golden/make_clip_bpe.py`. CLIP's vocabulary comes from the wheel of
open_clip_torch, which pip downloads; nothing of it is installed or run. The strings are made again from seeds. Stored
are the ids under the whole vocabulary, the part of it that these strings use (the ids are kept, merges that never
happen are left out, so nothing changes), and how every character is cut.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

WORDS = (
    'a the photo of an astronaut riding horse on mars oil painting in style Van Gogh highly detailed 8k trending '
    'artstation portrait cat dog red circle blue square unreal engine volumetric lighting cinematic masterpiece best '
    'quality ultra-realistic bokeh f/1.8 35mm Kodak supercalifragilisticexpialidocious antidisestablishmentarianism '
    "it's don't we'll they've I'm you're she'd rock'n'roll O'Brien's 'twas Zürich naïve façade São Paulo Kraków "
    'Ångström coöperate æther Straße İstanbul ΟΔΥΣΣΕΥΣ λόγος Москва ёлка Київ שלום مرحبا नमस्ते สวัสดี こんにちは 漢字 '
    '한국어 ひらがなカタカナ 中文字符 Việt_Nam ﬁne Ⅷ ½ x² H₂O №5 １２３ ٣٤٥ 3.14159 1,000,000 2024-11-22 '
    'user@example.com https://example.org/a?b=c&d=e#f #hashtag @name C++ C# f(x)=x^2 a_b snake_case camelCase '
    'HTTPServer iPhone &amp; &lt;b&gt; &quot;hi&quot; &#39; &nbsp; <b>bold</b> {curly} [square] (round) !!! ??? ... '
    '--- ___ *** '
    '~~~ $$$ %% ^^ && || \\\\ // "quoted" ‘single’ “double” «guillemets» … – — • € £ ¥ © ® ™ ° ± × ÷').split()
EMOJI = ('😀', '🐱‍👤', '👩‍🚀', '👨‍👩‍👧‍👦', '🇩🇪', '🏳️‍🌈', '👍🏽', '❤️', '☕', '🎨', '🧑🏿‍🎤', '1️⃣', '🫠', '\U0001fae8')
MARKS = ('\u0301', '\u0308', '\u0323', '\u0327', '\u20dd', '\u0345', '\u0489', '\u08d3', '\u1ac0')
SPACES = (' ', '  ', '\t', '\n', '\r\n', '\x0b', '\x0c', '\x85', '\xa0', '\u1680', '\u2003', '\u2028', '\u202f',
          '\u205f', '\u3000')
OTHERS = ('\x00', '\x01', '\x07', '\x1b[0m', '\x1c', '\x1f', '\x7f', '\x9f', '\u200b', '\u200d', '\ufeff', '\ufffd',
          '\xad', '\ue000', '\U0010ffff')
MARKUP = ('<|startoftext|>', '<|endoftext|>', '<|ENDOFTEXT|>', '<|endoftext|', '</w>', '<w>', '!', '<|')
ONES = ('', ' ', '\n\t ', '!', '.', 'a', 'A', "'", "''", "'s", "'S", "''s", "x's's", "'re've", "'l", 'ß', 'ẞ', 'ﬃ', 'Ǆ',
        'ŉ', 'i̇', 'ΣΑΣ', 'e\u0301\u0323', 'a\u08d3\u0301\u0323', '<|startoftext|><|endoftext|>', 'a<|endoftext|>b',
        'A <|EndOfText|> z', '0123456789', 'ⅣⅧ', '१२३', '\u1c89\ua7dc', '\U00010d50x\U00010d70', 'x' * 300,
        'ab ' * 120, 'é' * 90, '漢' * 80, '🎉' * 40, '\x00' * 5, 'Lorem ipsum dolor sit amet ' * 20, '。、「」',
        'ｆｕｌｌｗｉｄｔｈ　ＡＢＣ')
FOLDERS = {
    # name: (tokenizer_config.json, special_tokens_map.json or None)
    'plain': ({}, None),
    'sd1': ({'model_max_length': 77, 'tokenizer_class': 'CLIPTokenizer', 'pad_token': '<|endoftext|>'},
            '<|endoftext|>'),
    'sd2': ({'model_max_length': 77, 'tokenizer_class': 'CLIPTokenizer', 'pad_token': '!'}, '!'),
    'listed': ({'model_max_length': 20, 'pad_token': '!', 'added_tokens_decoder': {
        '0': {'content': '!', 'normalized': False, 'special': True},
        '49406': {'content': '<|startoftext|>', 'normalized': True, 'special': True},
        '49407': {'content': '<|endoftext|>', 'normalized': True, 'special': True},
        '49408': {'content': '<MyCat>', 'normalized': False, 'special': False},
        '49409': {'content': 'My Dog', 'normalized': True, 'special': False}}}, None),
}
FOLDER_STRINGS = [*ONES[:40], 'wow!!! !', 'x!<|endoftext|>!y', '<|STARTOFTEXT|>a', 'my <MyCat> and my\tdog',
                  '<mycat>MY DOGS', 'My  Dog!', 'hello! there', ' '.join(WORDS)]


def strings() -> list[str]:
    """A thousand strings."""
    random = np.random.RandomState(0)

    def pick(options):
        return options[random.randint(len(options))]

    def character():
        while True:
            code = random.randint(0x20, pick((0x250, 0x3000, 0x10000, 0x20000)))
            if not 0xD800 <= code <= 0xDFFF:
                return chr(code)

    def cased(word):
        return pick((word, word, word.upper(), word.title(), word.swapcase()))

    out = list(ONES)
    while len(out) < 1000:
        kind, n = random.randint(6), random.randint(1, 14)
        if kind < 2:
            out.append(' '.join(cased(pick(WORDS)) for _ in range(n)))
        elif kind == 2:  # anything beside anything
            pools = (WORDS, EMOJI, MARKS, SPACES, OTHERS, MARKUP, ("'s", "'T", "'Re", "'ll", '7', 'Q'))
            out.append(''.join(pick(pick(pools)) for _ in range(n)))
        elif kind == 3:
            out.append(''.join(character() for _ in range(n)))
        elif kind == 4:
            out.append(''.join(pick(WORDS) + pick(SPACES) + pick(EMOJI + MARKS) for _ in range(n)))
        else:
            word = ''.join(chr(random.randint(97, 123)) for _ in range(n))
            out.append(word + pick(SPACES) + str(random.randint(10**6)))
    return out


def blocks(last: int = 0x10000):
    """4,096 characters at a time, each between letters, digits, marks and after a letter with an accent."""
    for start in range(0, last, 4096):
        codes = [code for code in range(start, start + 4096) if not 0xD800 <= code <= 0xDFFF]
        yield ''.join(f'a{c}1{c}!{c} q\u0323{c}\u0301' for c in map(chr, codes))


def digest(ids) -> str:
    """Of a sequence of ids."""
    return hashlib.sha256(np.asarray(ids, '<i4').tobytes()).hexdigest()[:16]


def letters() -> list[str]:
    """The printable characters of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def byte_vocabulary() -> dict[str, int]:
    """The 256 byte symbols, within and at the end of words, and the two specials."""
    tokens = [*letters(), *(x + '</w>' for x in letters()), '<|startoftext|>', '<|endoftext|>']
    return {token: i for i, token in enumerate(tokens)}


def write_folder(folder: Path, vocab: dict, merges: list, name: str) -> Path:
    """A folder as published, with the settings called `name`."""
    config, pad = FOLDERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'vocab.json').write_text(json.dumps(vocab))
    (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *map(' '.join, merges), '']), encoding='utf-8')
    if pad is not None:
        named = {'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>'}
        named = {k: {'content': v, 'lstrip': False, 'normalized': True, 'rstrip': False, 'single_word': False}
                 for k, v in named.items()}
        (folder / 'special_tokens_map.json').write_text(json.dumps({**named, 'pad_token': pad}))
        config = {**config, **{k: {'__type': 'AddedToken', **v} for k, v in named.items()}}
    if config:
        (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return folder


def used_merges(tokenizer, ranks: dict) -> set:
    """The merges that happen in the strings."""
    back, used = tokenizer.backend_tokenizer, set()
    for text in [*strings(), *FOLDER_STRINGS]:
        for word, _ in back.pre_tokenizer.pre_tokenize_str(back.normalizer.normalize_str(text)):
            symbols = [*word[:-1], word[-1] + '</w>']
            while True:
                pairs = [(ranks[p], i, p) for i, p in enumerate(zip(symbols, symbols[1:], strict=False)) if p in ranks]
                if not pairs:
                    break
                _, i, pair = min(pairs)
                used.add(pair)
                symbols[i:i + 2] = [''.join(pair)]
    return used


def published_merges(folder: Path) -> list[tuple[str, str]]:
    """CLIP's 48,894 merges; the file goes on, but the vocabulary does not."""
    command = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '-d', str(folder), 'open_clip_torch==3.3.0']
    subprocess.run(command, check=True)
    (wheel,) = folder.glob('open_clip_torch*.whl')
    with zipfile.ZipFile(wheel) as files:
        lines = gzip.decompress(files.read('open_clip/bpe_simple_vocab_16e6.txt.gz')).decode().split('\n')
    return [tuple(line.split()) for line in lines[1:49152 - 256 - 2 + 1]]


def main():
    from transformers import CLIPTokenizer

    temporary = Path(tempfile.mkdtemp())
    every = merges = published_merges(temporary)
    tokens = [*letters(), *(x + '</w>' for x in letters()), *map(''.join, merges), '<|startoftext|>', '<|endoftext|>']
    vocab = {token: i for i, token in enumerate(tokens)}
    out, texts = {}, strings()
    whole = CLIPTokenizer.from_pretrained(write_folder(temporary / 'whole', vocab, merges, 'plain'))
    used = used_merges(whole, {pair: rank for rank, pair in enumerate(merges)})
    merges = [pair for pair in merges if pair in used]
    kept = {*tokens[:512], *tokens[-2:], *map(''.join, merges)}
    part = {token: i for token, i in vocab.items() if token in kept}
    print(len(texts), 'strings,', len(merges), 'merges,', len(part), 'tokens')
    for name in FOLDERS:
        folders = [write_folder(temporary / size / name, v, m, name)
                   for size, v, m in [('all', vocab, every), ('part', part, merges)]]
        cases = texts if name == 'plain' else FOLDER_STRINGS
        full, reduced = (CLIPTokenizer.from_pretrained(folder)(cases)['input_ids'] for folder in folders)
        if name != 'listed':  # where further tokens get their ids depends on the vocabulary's size there
            assert full == reduced
        tokenizer = CLIPTokenizer.from_pretrained(folders[0])
        out[f'{name}/ids'] = np.concatenate([ids[1:-1] for ids in full]).astype(np.int32)
        out[f'{name}/lengths'] = np.array([len(ids) - 2 for ids in full], np.int32)
        out[f'{name}/pad_id'] = tokenizer.pad_token_id
        if name == 'plain':
            out['decoded'] = json.dumps([tokenizer.decode(ids[1:-1]) for ids in full])
        padded = tokenizer(cases, padding='max_length', truncation=True, max_length=20)['input_ids']
        out[f'{name}/padded'] = digest(np.array(padded))
    tiny = CLIPTokenizer.from_pretrained(write_folder(temporary / 'bytes', byte_vocabulary(), [], 'plain'))
    out['characters'] = np.array([digest(tiny(text)['input_ids'][1:-1]) for text in blocks(0x110000)])
    out['vocab'], out['merges'] = json.dumps(part), '\n'.join(map(' '.join, merges))
    np.savez_compressed(Path(__file__).with_name('clip_bpe.npz'), **out)
    shutil.rmtree(temporary)


if __name__ == '__main__':
    main()
