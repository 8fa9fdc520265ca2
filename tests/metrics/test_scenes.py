import numpy as np
import pytest

from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_oracle import oracle
from gen_jax.metrics import scenes

FIELDS = ('image', 'shapes', 'colours', 'sizes')


@pytest.fixture(scope='module')
def outputs():
    source = shapes('test', fields=FIELDS)
    rows = [source[i] for i in range(24)]
    return {k: np.stack([r[k] for r in rows]) for k in FIELDS}


def score(*parts, **settings):
    metric = scenes(oracle, **settings)
    states = [metric.update(metric.init(), part) for part in parts]
    return metric.compute(metric.merge(*states) if len(states) == 2 else states[0])


def test_true_pictures_are_right_and_merging_changes_nothing(outputs):
    whole = score(outputs)
    assert [whole[k] for k in ('scene', 'scene_count', 'scene_colour', 'scene_shape', 'scene_size')] == [1.0] * 5
    assert whole['scene_stderr'] == 0 and whole['scene_recipe']['n'] == 24
    assert score(*({k: v[part] for k, v in outputs.items()} for part in (slice(0, 7), slice(7, 24)))) == whole


def test_each_part_is_told_apart(outputs):
    """One attribute of the first object wrong in a quarter of the scenes: that part alone suffers, and 'all' with it.
    The colour tells objects apart, so a wrong one loses the object's other attributes, too."""
    for part, key, count in (('shape', 'shapes', 4), ('size', 'sizes', 2)):
        wrong = outputs[key].copy()
        wrong[:6, 0] = (wrong[:6, 0] + 1) % count
        found = score({**outputs, key: wrong})
        assert found[f'scene_{part}'] == found['scene'] == 0.75
        assert {found[f'scene_{k}'] for k in {'count', 'colour', 'shape', 'size'} - {part}} == {1.0}
    missing = outputs['shapes'].copy()
    missing[:6] = np.where(np.arange(3) == (missing[:6] >= 0).sum(1, keepdims=True) - 1, -1, missing[:6])
    assert score({**outputs, 'shapes': missing})['scene_count'] == 0.75


def test_generated_floats_and_empty_pictures(outputs):
    floats = outputs['image'].astype(np.float32) / 127.5 - 1
    assert score({**outputs, 'made': floats}, prediction='made', name='x')['x'] == 1.0
    assert score({**outputs, 'image': np.zeros_like(outputs['image'])})['scene'] == 0.0
    with pytest.raises(ValueError, match="reads 'sizes', but the outputs hold"):
        score({k: v for k, v in outputs.items() if k != 'sizes'})
    metric = scenes(oracle)
    with pytest.raises(ValueError, match='no images'):
        metric.compute(metric.init())


def test_captions_are_a_truth_too():
    """Relations count with them; and what a caption leaves open may be anything."""
    source = shapes('test', min_objects=2, max_objects=2, fields=('image', 'captions'))
    rows = [source[i] for i in range(12)]
    image = np.stack([r['image'] for r in rows])
    for phrasing in range(5):
        found = score({'image': image, 'text': np.array([r['captions'][phrasing] for r in rows])}, caption='text')
        assert found['scene'] == found['scene_relations'] == 1.0
    assert found['scene_recipe']['exact'] == 'count, colour, shape, size, relations'
    mirrored = image[:, :, ::-1]  # left and right change places: half of the captions are wrong then
    words = [r['captions'][0] for r in rows]
    sideways = np.mean([' left of ' in w or ' right of ' in w for w in words])
    found = score({'image': mirrored, 'text': np.array(words)}, caption='text')
    assert 0 < sideways < 1 and found['scene_relations'] == found['scene'] == pytest.approx(1 - sideways)
