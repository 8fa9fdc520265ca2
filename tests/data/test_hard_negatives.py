"""Captions with one word exchanged: wrong, well formed, and every kind of mistake among them."""

from collections import Counter

import numpy as np
import pytest

from gen_jax.data.hard_negatives import check_groups, exchange_words
from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_captions import RELATIONS, parse_caption, shapes_vocabulary
from gen_jax.data.shapes_render import COLOUR_NAMES, SHAPES, SIZES

EXCHANGEABLE = (SHAPES, COLOUR_NAMES, SIZES, RELATIONS[:2], RELATIONS[2:])
GROUPS = (('red', 'blue', 'orange'), ('left of', 'right of'), ('circle', 'star'))


def outcomes(text, groups=GROUPS, n=200):
    return {exchange_words(text, groups, np.random.default_rng(i)) for i in range(n)}


def test_words_change_places_or_give_way():
    assert outcomes('a red circle left of a blue star') == {
        'a blue circle left of a red star', 'a red circle right of a blue star', 'a red star left of a blue circle'}
    assert outcomes('a red circle') == {'a blue circle', 'an orange circle', 'a red star'}
    assert outcomes('An orange star') == {'A red star', 'A blue star', 'An orange circle'}
    assert outcomes('a red circle and a red star', GROUPS[:1]) == {'a blue circle and a blue star',
                                                                  'an orange circle and an orange star'}


def test_only_whole_words_and_phrases():
    assert outcomes('a starfish is left of bluebells, circles') == {'a starfish is right of bluebells, circles'}
    assert outcomes('what is left') == outcomes('') == {None}


def test_the_captions_of_shapes_become_wrong_ones():
    source, rng, kinds = shapes(max_objects=2, size=300, fields=('captions',)), np.random.default_rng(0), Counter()
    words, same = set(shapes_vocabulary()), 0
    for i in range(300):
        for text in source[i]['captions']:
            wrong = exchange_words(text, EXCHANGEABLE, rng)
            assert set(wrong.replace(',', ' ,').split()) <= words
            assert ' a o' not in f' {wrong}' and ' an ' not in f' {wrong}'.replace(' an orange', '')
            before, after = parse_caption(text), parse_caption(wrong)
            assert before != after and len(before.objects) == len(after.objects)
            same += sorted(map(str, before.objects)) == sorted(map(str, after.objects)) and not before.relations
            kinds['relation'] += before.relations != after.relations
            kinds['objects'] += before.objects != after.objects
    assert kinds['relation'] > 80 and kinds['objects'] > 1000
    assert same < 0.03 * 1500  # a list of two things with their attributes exchanged can say the same


def test_wrong_groups():
    assert check_groups([['a', 'b']]) == (('a', 'b'),)
    for wrong in ((), (('a',),), ('ab', ('a', 'b')), (('a', 'b'), ('b', 'c')), (('a', 'a'),), (('a', ' '),)):
        with pytest.raises(ValueError, match='words'):
            check_groups(wrong)
