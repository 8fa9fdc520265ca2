import json
import subprocess
import sys
import zlib

import numpy as np
import pytest

from gen_jax.data import shapes_captions
from gen_jax.data.shapes import FIELDS, HELD_OUT, shapes
from gen_jax.data.shapes_render import COLOUR_NAMES, COLOURS, SHAPES, Thing, coverage, masks

SPLITS = ('train', 'val', 'test', 'heldout')


def digest(example):
    text = json.dumps([example['captions'], example['relations']])
    arrays = [example[name] for name in FIELDS if isinstance(example[name], (np.ndarray, np.generic))]
    return zlib.crc32(b''.join(np.ascontiguousarray(a).tobytes() for a in arrays), zlib.crc32(text.encode()))


@pytest.fixture(scope='module')
def examples():
    source = shapes(fields='all')
    return [source[i] for i in range(300)], [source.scene(i) for i in range(300)]


def test_deterministic_across_processes_and_free_of_jax():
    code = ('import sys; from tests.data.test_shapes import digest; from gen_jax.data.shapes import shapes\n'
            's = shapes("val", seed=3, fields="all"); print([digest(s[i]) for i in (7, 0, 7)])\n')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    source = shapes('val', seed=3, fields='all')
    assert json.loads(out) == [digest(source[i]) for i in (7, 0, 7)]
    code = 'import sys, gen_jax.data.shapes, gen_jax.data.digits; assert "jax" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_stream_of_scenes_is_pinned():
    # Raise shapes.VERSION if this has to change: checkpoints of older runs then refuse to go on silently.
    assert shapes()[0]['caption'] == 'a large red circle right of a large cyan circle and above a small yellow star'
    assert shapes('test')[1999]['caption'] == 'a small pink triangle left of a small red square'


def test_scene_does_not_depend_on_size_resolution_noise_or_fields():
    base = shapes(seed=1)
    for other in (shapes(seed=1, size=10), shapes(seed=1, image_size=64), shapes(seed=1, noise=0.0),
                  shapes(seed=1, fields='caption')):
        assert [other.scene(i) for i in range(10)] == [base.scene(i) for i in range(10)]
    clean, noisy = shapes(noise=0.0), shapes(noise=0.02)
    difference = np.concatenate([(noisy[i]['image'].astype(float) - clean[i]['image'])[clean[i]['image'] > 20]
                                 [None, :500].ravel() for i in range(20)]) / 255
    assert 0.015 < difference.std() < 0.022
    assert shapes(seed=2).scene(0) != base.scene(0)


def test_splits_share_no_picture():
    pictures = [shapes(split, noise=0.0)[i]['image'].tobytes() for split in SPLITS for i in range(200)]
    assert len(set(pictures)) == len(pictures)
    assert [len(shapes(split)) for split in SPLITS] == [50_000, 2_000, 2_000, 2_000]


def test_held_out_combinations():
    for split in SPLITS[:3]:
        source = shapes(split)
        seen = [(t.shape, t.colour) for i in range(600) for t in source.scene(i).things]
        assert not set(seen) & set(HELD_OUT)
        assert len(set(seen)) == 28
    source = shapes('heldout')
    scenes = [source.scene(i) for i in range(200)]
    assert {(s.things[0].shape, s.things[0].colour) for s in scenes} == set(HELD_OUT)
    assert not {(t.shape, t.colour) for s in scenes for t in s.things[1:]} & set(HELD_OUT)


def test_statistics_of_scenes(examples):
    _, scenes = examples
    counts = np.bincount([len(s.things) for s in scenes], minlength=4)
    assert (counts[1:] > 70).all() and counts[0] == 0
    things = [t for s in scenes for t in s.things]
    assert 0.3 < np.mean([t.size for t in things]) < 0.6
    assert min(t.radius for t in things) >= 4.0
    assert np.bincount([t.shape for t in things]).min() > 0.15 * len(things)
    assert all(len({t.colour for t in s.things}) == len(s.things) for s in scenes)
    assert 0.4 < np.mean([s.background > 0.5 for s in scenes]) < 0.6


def test_area_of_shapes():
    for shape, factor in enumerate((np.pi, 4 * 0.88**2, 3 * np.sqrt(3) / 4 * 1.25**2,
                                    5 * np.sin(np.pi / 5) * 0.45 * 1.3**2)):
        for radius in (4.0, 7.0):
            thing = Thing(shape, 0, 0, 16.3, 15.8, radius)
            assert coverage(thing, 32)[1].sum() == pytest.approx(factor * radius**2, rel=0.02)
            assert coverage(thing, 256)[1].sum() == pytest.approx(64 * factor * radius**2, rel=0.003)


@pytest.mark.parametrize('image_size', [32, 64])
def test_pictures_agree_with_masks_boxes_and_colours(image_size):
    source = shapes(image_size=image_size, noise=0.0, fields='all')
    for i in range(60):
        example, scene = source[i], source.scene(i)
        n = example['num_objects']
        visible, whole = masks(scene.things, scene.depth_order, image_size)
        np.testing.assert_array_equal(example['masks'][:n], visible)
        assert not example['masks'][n:].any() and (example['masks'].sum(0) <= 1).all()
        assert (visible.sum((1, 2)) >= 0.6 * whole.sum((1, 2))).all()
        for k in range(n):
            y, x = np.nonzero(visible[k])
            np.testing.assert_array_equal(example['boxes'][k], [x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert y.min() > 0 and x.min() > 0 and max(y.max(), x.max()) < image_size - 1
            pure = (np.abs(example['image'] - COLOURS[example['colours'][k]] * 255) < 1).all(-1)
            assert pure[visible[k]].mean() > 0.35 and not pure[~visible[k]].any()
            # Where two objects overlap, the nearer one is seen.
            for j in range(n):
                if example['depth_order'][k] < example['depth_order'][j]:
                    assert not (visible[j] & whole[k]).any()
        assert not example['boxes'][n:].any() and (example['class_ids'][n:] == -1).all()
        empty = ~example['masks'].any(0)
        assert (example['depth'][..., 0] > 0).sum() == (~empty).sum()
        ranks = [np.unique(example['depth'][visible[k]]).item() for k in range(n)]
        assert np.argsort(ranks)[::-1].tolist() == np.argsort(example['depth_order'][:n]).tolist()
        assert 0 < (example['edges'] > 0).sum() < 0.5 * image_size**2
        np.testing.assert_allclose(np.median(example['image'][empty]), scene.background * 255, atol=0.51)


def test_masks_hide_what_is_behind():
    front, back = Thing(0, 0, 1, 14.0, 16.0, 6.0), Thing(1, 1, 1, 20.0, 16.0, 6.0)
    visible, whole = masks([front, back], (0, 1))
    overlap = whole[0] & whole[1]
    assert overlap.any() and (visible[0] == whole[0]).all() and not (visible[1] & overlap).any()
    assert (masks([front, back], (1, 0))[0][1] == whole[1]).all()


def test_attributes_agree_with_the_scene(examples):
    for example, scene in zip(*examples, strict=True):
        n = len(scene.things)
        assert example['num_objects'] == n and example['label'] == example['class_ids'][0]
        np.testing.assert_array_equal(example['class_ids'][:n], [t.shape * 8 + t.colour for t in scene.things])
        np.testing.assert_array_equal(example['centres'][:n], np.float32([(t.x, t.y) for t in scene.things]))
    names = shapes().info['label_names']
    assert names[examples[0][2]['label']] == 'green triangle' and len(names) == 32


def test_captions_and_relations_are_true(examples):
    checks = {'left of': lambda a, b: a[0] < b[0] - 2, 'right of': lambda a, b: a[0] > b[0] + 2,
              'above': lambda a, b: a[1] < b[1] - 2, 'below': lambda a, b: a[1] > b[1] + 2}
    for example, scene in zip(*examples, strict=True):
        centres, n = example['centres'], len(scene.things)
        expected = {(i, name, j) for i in range(n) for j in range(n) if i != j
                    for name, holds in checks.items() if holds(centres[i], centres[j])}
        assert set(example['relations']) == expected
        assert example['caption'] == example['captions'][0]
        assert len(example['captions']) == shapes_captions.NUM_PHRASINGS
        for caption in example['captions']:
            assert len(caption.replace(',', ' ,').split()) + 2 <= shapes_captions.CAPTION_LENGTH
            prompt = shapes_captions.parse_caption(caption)
            by_colour = {t.colour: (k, t) for k, t in enumerate(scene.things)}
            order = []
            for asked in prompt.objects:
                k, thing = by_colour[asked.colour]
                assert asked.shape == thing.shape and asked.size in (None, thing.size)
                order.append(k)
            assert sorted(order) == list(range(n))
            for i, name, j in prompt.relations:
                assert (order[i], name, order[j]) in expected
        assert all(d.size is not None for d in shapes_captions.parse_caption(example['caption']).objects)


def test_caption_grammar():
    red, star, square = Thing(0, 0, 0, 8, 8, 4), Thing(3, 5, 1, 24, 9, 7), Thing(1, 1, 0, 9, 24, 4)
    assert shapes_captions.captions([red])[0] == 'a small red circle'
    assert shapes_captions.captions([red, star])[:2] == ['a small red circle left of a large blue star',
                                                         'a red circle left of a blue star']
    assert shapes_captions.captions([square, star, red]) == [
        'a small orange square left of a large blue star and below a small red circle',
        'an orange square left of a blue star and below a red circle',
        'a picture of a small orange square, a large blue star and a small red circle',
        'a large blue star right of a small orange square and right of a small red circle',
        'an orange square, a blue star and a red circle']
    prompt = shapes_captions.parse_caption('A red circle left of a large blue star and above an orange square')
    assert prompt.objects == ((0, 0, None), (3, 5, 1), (1, 1, None))
    assert prompt.relations == ((0, 'left of', 1), (0, 'above', 2))
    for text, complaint in [('a crimson circle', "'crimson'"), ('a red', 'without naming'), ('a', 'no object'),
                            ('left of a red circle', 'before its first object')]:
        with pytest.raises(ValueError, match=complaint):
            shapes_captions.parse_caption(text)


def test_class_captions():
    captions = shapes_captions.class_captions()
    assert len(set(captions)) == 32 and captions[0] == 'a red circle' and captions[9] == 'an orange square'
    source = shapes(max_objects=1)
    for i in range(20):  # the second phrasing of a single object is its class caption
        assert source[i]['captions'][1] == captions[source[i]['label']]
    every = shapes_captions.class_captions(None)
    assert [row[0] for row in every] == captions and len({len(row) for row in every}) == 1
    known = set(shapes_captions.shapes_vocabulary())
    assert {word for row in every for c in row for word in c.split()} <= known
    assert set(SHAPES) | set(COLOUR_NAMES) <= known
    with pytest.raises(ValueError, match='phrasing 9'):
        shapes_captions.class_captions(9)


def test_source_contract_and_bad_input():
    source = shapes('val', size=10)
    assert set(source[0]) == {'image', 'label', 'caption', 'captions'} and len(source) == 10
    assert source.info['image_shape'] == source[0]['image'].shape == (32, 32, 3)
    assert source[0]['image'].dtype == np.uint8 and source[0]['label'].dtype == np.int32
    assert json.loads(json.dumps(source.fingerprint)) == source.fingerprint
    prints = [json.dumps(s.fingerprint) for s in (
        source, shapes('test', size=10), shapes('val', size=11), shapes('val', size=10, seed=1),
        shapes('val', size=10, noise=0.0), shapes('val', size=10, max_objects=2), shapes('val', 64, size=10))]
    assert len(set(prints)) == len(prints)
    with pytest.raises(IndexError, match='10 examples'):
        source[10]
    for options, complaint in [({'split': 'dev'}, "'dev'.*heldout"), ({'image_size': 16}, '16.*32'),
                               ({'min_objects': 3, 'max_objects': 2}, '3.*2'), ({'max_objects': 4}, '4'),
                               ({'fields': ['image', 'mask']}, 'mask.*masks'), ({'fields': ()}, 'choose'),
                               ({'size': 0}, 'size 0'), ({'noise': -1.0}, 'negative')]:
        with pytest.raises(ValueError, match=complaint):
            shapes(**options)
