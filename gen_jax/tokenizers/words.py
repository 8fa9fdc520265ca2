"""A word-level tokenizer for small closed vocabularies, such as the captions of `shapes`."""

import re
import warnings
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ['Words', 'words']

_SPECIALS = ('<pad>', '<bos>', '<eos>', '<unk>')


def _split(text: str) -> list[str]:
    return re.findall(r'\w+|[^\w\s]', text.lower())


class Words:
    """The tokenizer made by `words`; see there."""

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, vocab: Sequence[str], max_length: int):
        self.vocab = (*_SPECIALS, *vocab)
        self.max_length = max_length
        self._ids = {word: i for i, word in enumerate(self.vocab)}

    @property
    def vocab_size(self) -> int:
        """Number of ids, the four special ones included."""
        return len(self.vocab)

    @property
    def fingerprint(self) -> dict:
        return {'tokenizer': 'words', 'vocab': list(self.vocab), 'max_length': self.max_length}

    def encode(self, text: str) -> np.ndarray:
        """int32 [max_length]: begin, words, end, padding. Warns when it cuts words or does not know one."""
        found = _split(text)
        room = self.max_length - 2
        if len(found) > room:
            warnings.warn(f'text of {len(found)} words exceeds max_length {self.max_length}; cut off: '
                          f'{" ".join(found[room:])!r} of {text!r}', stacklevel=2)
            found = found[:room]
        unknown = [word for word in found if word not in self._ids]
        if unknown:
            warnings.warn(f'words {unknown} of {text!r} are not in the vocabulary and become <unk>', stacklevel=2)
        ids = [self.bos_id, *(self._ids.get(word, self.unk_id) for word in found), self.eos_id]
        return np.array(ids + [self.pad_id] * (self.max_length - len(ids)), np.int32)

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """int32 [N, max_length] of N texts."""
        if isinstance(texts, str):
            raise TypeError('pass a list of texts, or call encode for a single one')
        rows = [self.encode(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.max_length), np.int32)

    def decode(self, ids) -> str:
        """The words of ids [L] up to the first end mark, joined by spaces (none before a comma or full stop)."""
        out = []
        for i in np.asarray(ids).tolist():
            if i == self.eos_id:
                break
            if not 0 <= i < self.vocab_size:
                raise ValueError(f'id {i} is outside of the vocabulary of {self.vocab_size}')
            if i not in (self.pad_id, self.bos_id):
                out.append(self.vocab[i])
        return re.sub(r' ([,.;:!?])', r'\1', ' '.join(out))


def words(vocab: Sequence[str], max_length: int) -> Words:
    """A tokenizer with one id per word: 0 pad, 1 begin, 2 end, 3 unknown, then `vocab` in its order.

    Text is lower-cased and split into runs of letters or digits and single marks.

    Args:
        vocab: the words and marks, lower case, each one token.
        max_length: length of an encoded text, begin and end included; longer texts are cut, with a warning.

    Raises:
        ValueError: an empty vocabulary, a repeated entry, one that is not a single lower-case token, or a max_length
            below 3.
    """
    vocab = list(vocab)
    if not vocab:
        raise ValueError('the vocabulary is empty; pass the words that the captions use')
    wrong = [word for word in vocab if _split(word) != [word]]
    if wrong:
        raise ValueError(f'vocabulary entries {wrong} are not single lower-case words or marks; split or lower them')
    repeated = sorted({word for word in vocab if vocab.count(word) > 1})
    if repeated:
        raise ValueError(f'vocabulary entries {repeated} occur more than once')
    if max_length < 3:
        raise ValueError(f'max_length {max_length} leaves no room for a word between begin and end; use at least 3')
    return Words(vocab, max_length)
