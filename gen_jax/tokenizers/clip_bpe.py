"""CLIP's tokenizer: byte pair encoding of lower-cased text, with an end mark on every word's last letter.

Radford et al. 2021 (https://arxiv.org/abs/2103.00020), section 2.4; Sennrich et al. 2016
(https://arxiv.org/abs/1508.07909), Algorithm 1. The ids are those of transformers 5's CLIPTokenizer for any text: no
mojibake is repaired and no HTML entity read, unlike in the paper's own code.
"""

import hashlib
import heapq
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gen_jax.tokenizers.characters import compose, kinds, lower
from gen_jax.tokenizers.clip_files import AddedToken, read_folder

__all__ = ['AddedToken', 'ClipTokenizer', 'clip_bpe', 'split_words']

_END = '</w>'
_SPACES = re.compile('[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+')
_FIXED = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d")
_RUN = re.compile('L+|N|P+')
_MARK = re.compile(r'(<\|)(\w+)(\|>)')


def _byte_letters() -> dict[int, str]:
    """Byte -> the printable character that stands for it in the vocabulary: itself, or one from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_LETTER = _byte_letters()
_BYTE = {letter: byte for byte, letter in _LETTER.items()}


def normalise(text: str) -> str:
    """Composed (NFC), white space as single blanks, lower case."""
    return lower(_SPACES.sub(' ', compose(text)))


def split_words(text: str) -> list[str]:
    """The words of a normalised text: contractions, runs of letters, single numbers, runs of other marks."""
    marks, words, i = kinds(text), [], 0
    while i < len(text):
        match = _FIXED.match(text, i)
        if match and match[0][0] == '<':  # spelt out in lower-cased text it is no token, but a word of its own
            words += _MARK.match(match[0]).groups()
        elif match := match or _RUN.match(marks, i):
            words.append(text[i:match.end()])
        i = match.end() if match else i + 1
    return words


class ClipTokenizer:
    """Text -> token ids: begin, the words' tokens, end, padding.

    Args:
        vocab: token -> id; byte symbols as in GPT-2, a word's last one with '</w>' behind.
        merges: pairs of tokens that become one, the most frequent first.
        bos_token, eos_token, unk_token, pad_token: begin, end, what stands for a symbol outside of the vocabulary, and
            padding ('!' in Stable Diffusion 2.x and in SDXL's second tokenizer, the end token elsewhere).
        added: tokens besides these four that are cut out of the text, or how these four are looked for.
        max_length: of an encoded text, begin and end included.

    Raises:
        ValueError: a token or the outcome of a merge is not in the vocabulary; max_length below 2.
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *,
                 bos_token: str = '<|startoftext|>', eos_token: str = '<|endoftext|>',
                 unk_token: str = '<|endoftext|>', pad_token: str = '<|endoftext|>',
                 added: Mapping[str, AddedToken] | None = None, max_length: int = 77):
        self.vocab = {**vocab, **{text: token.id for text, token in (added or {}).items()}}
        named = {'bos_token': bos_token, 'eos_token': eos_token, 'unk_token': unk_token, 'pad_token': pad_token}
        for name, token in named.items():
            if token not in self.vocab:
                raise ValueError(f'{name} {token!r} is not in the vocabulary of {len(self.vocab)} tokens; choose one '
                                 'of them')
        self.added = {**{text: AddedToken(self.vocab[text]) for text in named.values()}, **(added or {})}
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (self.vocab[token] for token in named.values())
        wrong = [pair for pair in merges if not {*pair, ''.join(pair)} <= self.vocab.keys()]
        if wrong:
            raise ValueError(f'{len(wrong)} of {len(merges)} merges are about tokens that the vocabulary lacks, such '
                             f'as {" ".join(wrong[0])!r}; vocabulary and merges belong to different tokenizers')
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        written = {text: normalise(text) for text, token in self.added.items() if token.normalized}
        self._tokens = {i: written.get(token, token) for token, i in self.vocab.items()}
        self._specials = {token.id for token in self.added.values() if token.special}
        self._as_is = _any_of(text for text, token in self.added.items() if not token.normalized)
        self._lowered = {normalise(text): token.id for text, token in self.added.items() if token.normalized}
        self._in_lowered = _any_of(self._lowered)
        self._known: dict[str, list[int]] = {}
        self.max_length = _checked(max_length)

    @classmethod
    def from_files(cls, folder, max_length: int | None = None) -> 'ClipTokenizer':
        """The tokenizer of a published folder, see `gen_jax.tokenizers.clip_files.read_folder`.

        Args:
            folder: with vocab.json and merges.txt, or tokenizer.json.
            max_length: None takes that of tokenizer_config.json, or 77.
        """
        settings = read_folder(folder)
        return cls(**{**settings, 'max_length': settings['max_length'] if max_length is None else max_length})

    @property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest."""
        return max(self._tokens) + 1

    @property
    def fingerprint(self) -> dict:
        """What decides the ids, for the fingerprint of a data pipeline."""
        content = json.dumps([self.vocab, list(self._ranks), self.added, self.bos_id, self.eos_id, self.unk_id],
                             sort_keys=True)
        return {'tokenizer': 'clip_bpe', 'sha256': hashlib.sha256(content.encode()).hexdigest()[:16],
                'pad_id': self.pad_id, 'max_length': self.max_length}

    def ids(self, text: str) -> list[int]:
        """The tokens of a text of any length, without begin, end and padding.

        Raises:
            ValueError: the text holds half of a surrogate pair, which is no character.
        """
        out = []
        for i, part in enumerate(self._as_is.split(text)):
            if i % 2:
                out.append(self.added[part].id)
                continue
            for j, rest in enumerate(self._in_lowered.split(normalise(part))):
                if j % 2:
                    out.append(self._lowered[rest])
                    continue
                for word in split_words(rest):
                    out += self._word_ids(word)
        return out

    def encode(self, text: str, max_length: int | None = None) -> np.ndarray:
        """int32 [max_length]; warns when it cuts a text, and says what."""
        length = self.max_length if max_length is None else _checked(max_length)
        found = self.ids(text)
        if len(found) > length - 2:
            warnings.warn(f'text of {len(found) + 2} tokens exceeds max_length {length}; cut off: '
                          f'{self.decode(found[length - 2:], skip_special_tokens=False)!r}', stacklevel=2)
        ids = [self.bos_id, *found[:length - 2], self.eos_id]
        return np.array(ids + [self.pad_id] * (length - len(ids)), np.int32)

    def truncated(self, text: str, max_length: int | None = None) -> str:
        """The end of the text that `encode` cuts off, as `decode` writes it; '' if it all fits."""
        length = self.max_length if max_length is None else _checked(max_length)
        return self.decode(self.ids(text)[length - 2:], skip_special_tokens=False)

    def __call__(self, texts: Iterable[str], max_length: int | None = None) -> np.ndarray:
        """int32 [N, max_length] of N texts."""
        if isinstance(texts, str):
            raise TypeError('pass a list of texts, or call encode for a single one')
        rows = [self.encode(text, max_length) for text in texts]
        length = self.max_length if max_length is None else _checked(max_length)
        return np.stack(rows) if rows else np.zeros((0, length), np.int32)

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        """The text of ids [L]: lower case, words apart by blanks; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside of the vocabulary.
        """
        out = bytearray()
        for i in np.asarray(ids, int).tolist():
            if i not in self._tokens:
                raise ValueError(f'id {i} is not in the vocabulary of {len(self._tokens)} tokens')
            if not (skip_special_tokens and i in self._specials):
                token = self._tokens[i]
                known = all(letter in _BYTE for letter in token)
                out += bytes(_BYTE[letter] for letter in token) if known else token.encode()
        return out.decode(errors='replace').replace(_END, ' ').strip()

    def _word_ids(self, word: str) -> list[int]:
        if word not in self._known:
            if len(self._known) > 100_000:  # a cache, not a leak
                self._known.clear()
            try:
                letters = [_LETTER[byte] for byte in word.encode()]
            except UnicodeEncodeError as error:
                raise ValueError(f'the text holds half of a surrogate pair in {word!r}; decode it properly') from error
            letters[-1] += _END
            self._known[word] = [self.vocab.get(token, self.unk_id) for token in merged(letters, self._ranks)]
        return self._known[word]


def merged(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Neighbours merged, the pair of the lowest rank first and the leftmost of equals, until no pair has a rank.

    A heap of candidates over a doubly linked list: O(n log n) for n symbols.
    """
    n = len(symbols)
    symbols, before, after = list(symbols), list(range(-1, n - 1)), list(range(1, n + 1))
    heap = []

    def push(i):
        if 0 <= i and after[i] < n:
            pair = symbols[i], symbols[after[i]]
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], i, pair))

    for i in range(n):
        push(i)
    while heap:
        _, i, pair = heapq.heappop(heap)
        j = after[i]
        if j >= n or (symbols[i], symbols[j]) != pair:  # one of them has been merged meanwhile
            continue
        symbols[i], symbols[j], after[i] = ''.join(pair), '', after[j]
        if after[j] < n:
            before[after[j]] = i
        push(before[i])
        push(i)
    return [symbol for symbol in symbols if symbol]


def clip_bpe(folder, max_length: int | None = None) -> ClipTokenizer:
    """`ClipTokenizer.from_files`, under the name that configs use."""
    return ClipTokenizer.from_files(folder, max_length)


def _any_of(texts: Iterable[str]) -> re.Pattern:
    """Any of the texts, the longest that fits; never matches without texts."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f'({"|".join(map(re.escape, longest_first)) or "(?!)"})')


def _checked(max_length: int) -> int:
    if max_length < 2:
        raise ValueError(f'max_length {max_length} leaves no room for begin and end; use at least 2')
    return max_length
