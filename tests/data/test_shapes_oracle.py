import numpy as np
import pytest

from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_captions import parse_caption
from gen_jax.data.shapes_oracle import UNREADABLE, compare, matches, read_scene
from gen_jax.data.shapes_render import Thing, render


def kinds(objects):
    return sorted((o.colour, o.shape, o.size) for o in objects)


def drawn(*things, background=0.15):
    image = render(things, range(len(things)), background)
    return np.rint(image * 255).astype(np.uint8)


@pytest.mark.parametrize('split, count', [('test', 500), ('heldout', 100)])
def test_reads_true_scenes(split, count):
    source = shapes(split, fields=('image', 'captions'))
    right = 0
    for i in range(count):
        example, scene = source[i], source.scene(i)
        seen = read_scene(example['image'])
        if kinds(seen) != kinds(scene.things):
            continue
        right += all(matches(seen, caption) for caption in example['captions'])
        for s, t in zip(sorted(seen, key=lambda o: o.colour), sorted(scene.things, key=lambda o: o.colour),
                        strict=True):
            assert np.hypot(s.x - t.x, s.y - t.y) < 0.5 and abs(s.radius - t.radius) < 0.5
    assert right >= 0.995 * count


def test_reads_floats_and_larger_pictures():
    small, large = shapes('val'), shapes('val', image_size=64)
    for i in range(15):
        truth = kinds(small.scene(i).things)
        assert kinds(read_scene(small[i]['image'].astype(np.float32) / 127.5 - 1)) == truth
        assert kinds(read_scene(large[i]['image'])) == truth


def test_reads_pictures_as_models_make_them():
    """Three times the noise, and slightly washed-out colours."""
    source, rng = shapes('val', noise=0.06), np.random.default_rng(0)
    right = 0
    for i in range(100):
        image = source[i]['image'] * (0.93 + 0.07 * rng.random(3)) + 6
        right += kinds(read_scene(np.clip(image, 0, 255).astype(np.uint8))) == kinds(source.scene(i).things)
    assert right >= 95


def test_other_prompts_do_not_match():
    source = shapes('test', fields=('image', 'captions'))
    turned = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
    for i in range(60):
        seen, things = read_scene(source[i]['image']), list(source.scene(i).things)
        assert matches(seen, things)
        first = things[0]
        assert not matches(seen, [first._replace(shape=(first.shape + 1) % 4), *things[1:]])
        assert not matches(seen, [first._replace(size=1 - first.size), *things[1:]])
        free = next(c for c in range(8) if c not in {t.colour for t in things})
        assert not matches(seen, [first._replace(colour=free), *things[1:]])
        assert not matches(seen, [*things, first]) and not matches(seen, things[1:])
        prompt = parse_caption(source[i]['captions'][0])
        if prompt.relations:
            (a, name, b), *rest = prompt.relations
            assert not matches(seen, prompt._replace(relations=((a, turned[name], b), *rest)))


def test_swapped_attributes_are_told_apart():
    seen = read_scene(drawn(Thing(0, 0, 0, 8, 16, 4.5), Thing(1, 5, 0, 24, 16, 4.5)))
    assert matches(seen, 'a red circle left of a blue square')
    assert matches(seen, 'a small blue square right of a small red circle')
    got = compare(seen, 'a blue circle left of a red square')
    assert got['count'] and got['colour'] and not got['shape'] and not got['all']
    got = compare(seen, 'a red circle above a blue square')
    assert got['colour'] and got['shape'] and got['size'] and not got['relations'] and not got['all']
    assert compare(seen, 'a red circle')['count'] is False and not compare(seen, 'a green circle')['colour']


def test_two_objects_of_one_colour():
    seen = read_scene(drawn(Thing(0, 0, 0, 8, 8, 4.5), Thing(3, 0, 1, 22, 20, 6.5)))
    assert kinds(seen) == [(0, 0, 0), (0, 3, 1)]
    assert matches(seen, 'a small red circle and a large red star')


def test_an_object_cut_in_two_is_one():
    """A pink bar in front splits a blue square; the bar itself is no shape."""
    image = render([Thing(1, 5, 1, 16, 16, 7.0)], [0], 0.1)
    image[6:27, 15:17] = [1.0, 0.45, 0.8]
    seen = read_scene(np.rint(image * 255).astype(np.uint8))
    assert kinds(seen) == [(5, 1, 1), (7, UNREADABLE, seen[1].size)]


def test_debris_is_unreadable_and_empty_is_empty():
    assert read_scene(np.full((32, 32, 3), 40, np.uint8)) == []
    assert not matches([], 'a red circle')
    image = drawn(Thing(0, 0, 0, 8, 8, 4.5))
    image[20:24, 4:28] = (20, 56, 242)  # a blue bar
    seen = read_scene(image)
    assert [s.shape for s in seen] == [0, UNREADABLE] and not matches(seen, 'a red circle')
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert all(s.shape == UNREADABLE for s in read_scene(noise))


def test_bad_input():
    with pytest.raises(ValueError, match=r'\(48, 48, 3\)'):
        read_scene(np.zeros((48, 48, 3), np.uint8))
    with pytest.raises(ValueError, match='int32'):
        read_scene(np.zeros((32, 32, 3), np.int32))
    with pytest.raises(ValueError, match='NaN'):
        read_scene(np.full((32, 32, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="'dog'"):
        matches([], 'a red dog')
