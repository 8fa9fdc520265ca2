"""Captions that are nearly right: one or two words of a caption exchanged, for contrastive training.

A contrastive text encoder hardly needs word order: the other captions of a batch name other things. Captions that name
the same things otherwise make it read what is left of what, and which colour belongs to which thing (Yuksekgonul et
al. 2023, "When and why vision-language models behave like bags-of-words", section 4, https://arxiv.org/abs/2210.01936).
"""

import re
from collections.abc import Sequence

__all__ = ['check_groups', 'exchange_words']


def check_groups(groups: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The groups as tuples.

    Raises:
        ValueError: no group, one of fewer than two different words, or a word that is none or that is in two groups.
    """
    groups = tuple((group,) if isinstance(group, str) else tuple(group) for group in groups)
    words = [word for group in groups for word in group]
    if not groups or any(len(group) < 2 for group in groups):
        raise ValueError(f'words can be exchanged within groups of at least two, got {groups}')
    if any(not isinstance(word, str) or not word.strip() for word in words) or len(set(words)) != len(words):
        raise ValueError(f'groups of words to exchange need every word once, got {groups}')
    return groups


def exchange_words(text: str, groups: Sequence[Sequence[str]], rng) -> str | None:
    """The text with one word of one of its groups exchanged for another; None if it has no word of any group.

    One group that occurs in the text is drawn, and one of its words that occur. If others of the group occur, too, it
    changes places with one of them (every occurrence of both): 'a red circle left of a blue star' becomes 'a blue
    circle left of a red star'. If not, one that does not occur takes its place: 'right of' for 'left of'. An 'a' or
    'an' in front follows the first letter. What comes out is nearly always wrong of the picture, not always: 'a red
    star and a blue star' says the same with its colours exchanged.

    Args:
        groups: words or phrases that may stand for each other, see `check_groups`.
        rng: NumPy's generator.
    """
    present = [[word for word in group if re.search(rf'\b{re.escape(word)}\b', text)] for group in groups]
    candidates = [i for i, words in enumerate(present) if words]
    if not candidates:
        return None
    i = candidates[int(rng.integers(len(candidates)))]
    word = present[i][int(rng.integers(len(present[i])))]
    others = [w for w in (present[i] if len(present[i]) > 1 else groups[i]) if w != word]
    other = others[int(rng.integers(len(others)))]

    def swapped(match):
        new = other if match['word'] == word else word
        article = match['article'] and match['article'][0] + ('n ' if new[0] in 'aeiou' else ' ')
        return (article or '') + new

    return re.sub(rf'\b(?P<article>[Aa]n? )?\b(?P<word>{re.escape(word)}|{re.escape(other)})\b', swapped, text)
