"""What scenes of `shapes` are called: captions, relations, the words they use, and reading a caption back."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from gen_jax.data.shapes_render import COLOUR_NAMES, SHAPES, SIZES, Thing

__all__ = ['CAPTION_LENGTH', 'NUM_PHRASINGS', 'RELATIONS', 'RELATION_MARGIN', 'Described', 'Prompt', 'captions',
           'class_captions', 'main_relation', 'parse_caption', 'relations', 'shapes_vocabulary']

RELATIONS = ('left of', 'right of', 'above', 'below')
RELATION_MARGIN = 2.0
"""A relation holds if the centres differ by at least this along its axis, in canvas units."""
NUM_PHRASINGS = 5
CAPTION_LENGTH = 24
"""Tokens that hold any caption of up to three objects, begin and end marks included."""
CLASS_PHRASINGS = ('a {}', 'a picture of a {}', 'one {}')
"""Templates for `class_captions`; 'a' becomes 'an' before a vowel."""


def _article(text: str) -> str:
    return re.sub(r'\ba (?=[aeiou])', 'an ', text)


def _name(thing, with_size: bool) -> str:
    size = SIZES[thing.size] + ' ' if with_size else ''
    return f'a {size}{COLOUR_NAMES[thing.colour]} {SHAPES[thing.shape]}'


def relations(things: Sequence[Thing]) -> list[tuple[int, str, int]]:
    """All relations that hold: (i, 'left of', j) says that i's centre is left of j's by RELATION_MARGIN or more."""
    out = []
    for i, a in enumerate(things):
        for j, b in enumerate(things):
            if i == j:
                continue
            holds = (b.x - a.x, a.x - b.x, b.y - a.y, a.y - b.y)
            out += [(i, name, j) for name, gap in zip(RELATIONS, holds, strict=True) if gap >= RELATION_MARGIN]
    return out


def main_relation(a: Thing, b: Thing) -> str:
    """The relation of a to b along the axis on which their centres differ most."""
    if abs(a.x - b.x) >= abs(a.y - b.y):
        return RELATIONS[0] if a.x < b.x else RELATIONS[1]
    return RELATIONS[2] if a.y < b.y else RELATIONS[3]


def captions(things: Sequence[Thing]) -> list[str]:
    """Phrasings of a scene of one to three objects, NUM_PHRASINGS of them, all true of it.

    One object: 'a small red circle'. More: relations of the first object to the others, as in 'a small red circle
    left of a large blue star and above a small green square', or a plain list.
    """
    full = [_name(t, True) for t in things]
    short = [_name(t, False) for t in things]
    if len(things) == 1:
        out = [full[0], short[0], f'a picture of {full[0]}', f'there is {full[0]}', f'one {short[0][2:]}']
        return [_article(c) for c in out]
    first = things[0]

    def related(names):
        parts = [f'{main_relation(first, t)} {name}' for t, name in zip(things[1:], names[1:], strict=True)]
        return f'{names[0]} ' + ' and '.join(parts)

    def listed(names):
        return ', '.join(names[:-1]) + ' and ' + names[-1]

    reverse = f'{full[1]} {main_relation(things[1], first)} {full[0]}'
    if len(things) == 3:
        reverse += f' and {main_relation(things[1], things[2])} {full[2]}'
    out = [related(full), related(short), f'a picture of {listed(full)}', reverse, listed(short)]
    return [_article(c) for c in out]


def class_captions(phrasing: int | None = 0) -> list:
    """The zero-shot prompts: entry `shape * 8 + colour` is 'a {colour} {shape}'.

    Args:
        phrasing: which of CLASS_PHRASINGS; None gives all of them, a list of lists [32][len(CLASS_PHRASINGS)], whose
            embeddings may be averaged (Radford et al. 2021, section 3.1.4).
    """
    names = [f'{colour} {shape}' for shape in SHAPES for colour in COLOUR_NAMES]
    if phrasing is None:
        return [[_article(p.format(name)) for p in CLASS_PHRASINGS] for name in names]
    if not 0 <= phrasing < len(CLASS_PHRASINGS):
        raise ValueError(f'phrasing {phrasing} is not one of 0..{len(CLASS_PHRASINGS) - 1} (or None for all)')
    return [_article(CLASS_PHRASINGS[phrasing].format(name)) for name in names]


def shapes_vocabulary() -> list[str]:
    """Every word and mark that the captions use, for `gen_jax.tokenizers.words`."""
    relation_words = sorted({word for r in RELATIONS for word in r.split()})
    return [*SHAPES, *COLOUR_NAMES, *SIZES, *relation_words, 'a', 'an', 'and', 'is', 'one', 'picture', 'there', ',']


class Described(NamedTuple):
    """An object as a prompt asks for it: indices, None where the prompt leaves it open."""

    shape: int
    colour: int | None = None
    size: int | None = None


class Prompt(NamedTuple):
    """A parsed caption."""

    objects: tuple[Described, ...]
    relations: tuple[tuple[int, str, int], ...]
    """(i, name, j) as in `relations`."""


def parse_caption(text: str) -> Prompt:
    """Read a caption of this module's grammar back: [size] [colour] shape, joined by relations, 'and' and commas.

    A relation without a subject of its own ('A left of B and above C') is about the first object.

    Raises:
        ValueError: a word outside of the vocabulary, a relation without an object, or no object at all.
    """
    known = set(shapes_vocabulary())
    objects, found = [], []
    colour = size = relation = None
    words = re.findall(r'\w+|[^\w\s]', text.lower())
    for word in words:
        if word not in known:
            raise ValueError(f'{word!r} in prompt {text!r} is no word of the shapes captions; known: {sorted(known)}')
        if word in COLOUR_NAMES:
            colour = COLOUR_NAMES.index(word)
        elif word in SIZES:
            size = SIZES.index(word)
        elif word in SHAPES:
            objects.append(Described(SHAPES.index(word), colour, size))
            if relation is not None:
                if len(objects) < 2:
                    raise ValueError(f'prompt {text!r} has {relation!r} before its first object')
                found.append((0, relation, len(objects) - 1))
            colour = size = relation = None
        else:
            relation = {r.split()[0]: r for r in RELATIONS}.get(word, relation)
    if relation is not None or colour is not None or size is not None:
        raise ValueError(f'prompt {text!r} ends without naming a shape; shapes: {SHAPES}')
    if not objects:
        raise ValueError(f'prompt {text!r} names no object; shapes: {SHAPES}')
    return Prompt(tuple(objects), tuple(found))
