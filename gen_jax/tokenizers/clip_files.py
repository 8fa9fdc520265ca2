"""The files of a published CLIP tokenizer: vocab.json and merges.txt, or tokenizer.json, and its settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ['AddedToken', 'read_folder']

_NAMED = ('bos_token', 'eos_token', 'unk_token', 'pad_token')
_DEFAULTS = dict.fromkeys(_NAMED, '<|endoftext|>') | {'bos_token': '<|startoftext|>'}


class AddedToken(NamedTuple):
    """A token that is cut out of the text before anything else.

    Attributes:
        id: its id.
        normalized: it is looked for in the lower-cased text; otherwise in the text as it comes, and first.
        special: left out when ids are decoded.
    """

    id: int
    normalized: bool = False
    special: bool = True


def read_folder(folder) -> dict[str, Any]:
    """The arguments of `ClipTokenizer` that a folder describes.

    tokenizer.json, where there is one, gives vocabulary and merges. The names of the four special tokens, and whether
    they are looked for in lower-cased text, come from tokenizer_config.json, special_tokens_map.json and the added
    tokens of either file, in the order of precedence that transformers 5 has.

    Raises:
        ValueError: files missing or unreadable; those of another kind of tokenizer; settings not implemented.
    """
    folder = Path(folder)
    config = _json(folder / 'tokenizer_config.json', {})
    kind = config.get('tokenizer_class', 'CLIPTokenizer')
    if kind not in ('CLIPTokenizer', 'CLIPTokenizerFast'):
        raise ValueError(f'{folder} holds a {kind}, not a CLIPTokenizer')
    whole = _json(folder / 'tokenizer.json', None)
    vocab, merges = _from_one_file(folder, whole) if whole is not None else _from_two_files(folder)

    listed = {int(i): token for i, token in config.get('added_tokens_decoder', {}).items()}
    values = {**_DEFAULTS, **{k: config[k] for k in _NAMED if config.get(k) is not None}}
    if 'added_tokens_decoder' not in config:
        older = _json(folder / 'special_tokens_map.json', {})
        for name, value in ((k, older[k]) for k in _NAMED if older.get(k) is not None):
            values[name] = {**value, 'special': True} if isinstance(value, Mapping) else value
        names = {_text(value) for value in values.values()}
        for text, i in _json(folder / 'added_tokens.json', {}).items():
            listed[i] = {'content': text, 'special': text in names}
        listed.update({token['id']: token for token in (whole or {}).get('added_tokens', ())})
    by_text = {token['content']: token for token in listed.values()}
    added = {token['content']: _added(folder, i, token) for i, token in sorted(listed.items())}
    for name in _NAMED:  # where they share a text, the last one decides
        text = _text(values[name])
        value = by_text.get(text, values[name])
        if text not in vocab and text not in added:
            raise ValueError(f'{folder}: {name} {text!r} is not in the vocabulary of {len(vocab)} tokens')
        i = vocab[text] if text in vocab else added[text].id
        added[text] = _added(folder, i, value)._replace(special=True) if isinstance(value, Mapping) else AddedToken(i)
    length = config.get('model_max_length') or 77
    return {'vocab': vocab, 'merges': merges, 'added': added, **{k: _text(values[k]) for k in _NAMED},
            'max_length': int(length) if length < 1e6 else 77}  # a huge number stands for none


def _text(value) -> str:
    return value['content'] if isinstance(value, Mapping) else value


def _added(folder: Path, i: int, token: Mapping) -> AddedToken:
    for setting in ('lstrip', 'rstrip', 'single_word'):
        if token.get(setting):
            raise ValueError(f'{folder}: added token {token["content"]!r} has {setting}, which is not implemented')
    special = token.get('special', False)
    return AddedToken(i, token.get('normalized', not special), special)


def _from_one_file(folder: Path, whole: Mapping):
    model = whole.get('model', {})
    if model.get('type', 'BPE') != 'BPE' or model.get('end_of_word_suffix') != '</w>' or 'merges' not in model:
        raise ValueError(f'{folder / "tokenizer.json"} holds no byte pair encoding with the word end </w>, so it is '
                         'no CLIP tokenizer')
    return model['vocab'], [tuple(m.split(' ') if isinstance(m, str) else m) for m in model['merges']]


def _from_two_files(folder: Path):
    paths = folder / 'vocab.json', folder / 'merges.txt'
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f'{folder} has no {" and no ".join(missing)}; a CLIP tokenizer is vocab.json and merges.txt, '
                         'or tokenizer.json')
    lines = paths[1].read_text(encoding='utf-8').split('\n')
    lines = [line for line in lines if line and not line.startswith('#version')]
    wrong = [line for line in lines if len(line.split(' ')) != 2]
    if wrong:
        raise ValueError(f'{paths[1]}: line {wrong[0]!r} is no pair of tokens')
    return _json(paths[0], None), [tuple(line.split(' ')) for line in lines]


def _json(path: Path, default):
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from error
