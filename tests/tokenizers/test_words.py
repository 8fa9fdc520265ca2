import warnings

import numpy as np
import pytest

from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_captions import CAPTION_LENGTH, class_captions, shapes_vocabulary
from gen_jax.tokenizers.words import words


def test_round_trip_over_the_captions_of_shapes():
    tokenizer = words(shapes_vocabulary(), CAPTION_LENGTH)
    source = shapes(fields='captions')
    texts = [c for i in range(100) for c in source[i]['captions']] + class_captions()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ids = tokenizer(texts)
    assert ids.shape == (len(texts), CAPTION_LENGTH) and ids.dtype == np.int32
    assert [tokenizer.decode(row) for row in ids] == texts
    assert (ids[:, 0] == tokenizer.bos_id).all() and ((ids == tokenizer.eos_id).sum(1) == 1).all()
    assert ids.max() < tokenizer.vocab_size and not (ids == tokenizer.unk_id).any()


def test_ids_are_the_order_of_the_vocabulary():
    tokenizer = words(['red', 'circle', 'a', ','], 8)
    np.testing.assert_array_equal(tokenizer.encode('A Red,circle'), [1, 6, 4, 7, 5, 2, 0, 0])
    assert tokenizer.vocab_size == 8 and tokenizer.fingerprint != words(['red'], 8).fingerprint
    assert tokenizer.encode('').tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert tokenizer([]).shape == (0, 8)


def test_too_long_is_cut_aloud_and_keeps_its_end():
    tokenizer = words(['a', 'red', 'circle'], 4)
    with pytest.warns(UserWarning, match="cut off: 'circle'"):
        ids = tokenizer.encode('a red circle')
    np.testing.assert_array_equal(ids, [1, 4, 5, 2])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tokenizer.encode('red circle')


def test_unknown_words_are_named():
    tokenizer = words(['a', 'circle'], 6)
    with pytest.warns(UserWarning, match='crimson'):
        ids = tokenizer.encode('a crimson circle')
    np.testing.assert_array_equal(ids, [1, 4, 3, 5, 2, 0])
    assert tokenizer.decode(ids) == 'a <unk> circle'


def test_bad_input():
    for vocab, length, complaint in [([], 8, 'empty'), (['left of'], 8, 'left of'), (['Red'], 8, 'Red'),
                                     (['red', 'red'], 8, 'more than once'), (['red'], 2, 'max_length 2')]:
        with pytest.raises(ValueError, match=complaint):
            words(vocab, length)
    tokenizer = words(['red'], 8)
    with pytest.raises(ValueError, match='id 99'):
        tokenizer.decode([1, 99])
    with pytest.raises(TypeError, match='list of texts'):
        tokenizer('red')
