"""A judge of generated digits that has only ever seen real ones.

A support vector machine trained on the real training digits reads the generated ones. Accuracy alone can be cheated
(one real digit per class, repeated, is read perfectly), so the report also compares distributions (Fréchet distance in
the machine's decision values) and looks for copies (distance to the nearest training digit).

The scale of the distance, with scikit-learn's 1,797 digits permuted by `np.random.default_rng(0)`, the first 1,500 to
train and the last 297 held out (`calibrate` prints these): real training digits 0.99, five per class repeated 3.45,
one per class repeated 8.13, the class means 13.46. It depends on the split more than on the judge: with 360 stratified
held-out digits real training digits are at 0.27, so compare at equal `digits_recipe` only.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gen_jax.metrics.frechet import Moments, distance, empty, moments
from gen_jax.metrics.frechet import merge as merge_moments
from gen_jax.metrics.mean import fetch
from gen_jax.types import Metric

__all__ = ['PUBLISHED', 'Judge', 'calibrate', 'digits_report', 'make_judge', 'to_levels']

CLASSES = 10
GAMMA, C = 0.001, 10.0
PUBLISHED = {'frechet_train': 0.99, 'frechet_five_per_class': 3.45, 'frechet_one_per_class': 8.13,
             'frechet_class_means': 13.46, 'nearest_train_heldout': 16.34}
"""What `calibrate` returns for the split named above."""


def to_levels(images, key: str = 'image') -> np.ndarray:
    """Images -> int levels 0..16 [N, 64], those that the digits were scanned at.

    Args:
        images: uint8, or floating point in [-1, 1] (clipped); [N, S, S] or [N, S, S, 1], S a multiple of 8: larger
            images are averaged over areas first.

    Raises:
        ValueError: another shape or dtype, or pixels that are not finite.
    """
    images = np.asarray(images)
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.shape[1] != images.shape[2] or images.shape[1] % 8 or images.shape[1] == 0:
        raise ValueError(f'{key!r} has shape {list(images.shape)}: digits are grey [N, S, S, 1] with S a multiple of 8')
    if images.dtype == np.uint8:
        unit = images / 255.0
    elif images.dtype.kind in 'fV':
        unit = images.astype(np.float64)
        bad = int((~np.isfinite(unit)).any((1, 2)).sum())
        if bad:
            raise ValueError(f'{bad} of {len(unit)} images in {key!r} hold NaN or infinity')
        unit = np.clip(unit, -1.0, 1.0) / 2 + 0.5
    else:
        raise ValueError(f'{key!r} is {images.dtype}: expected uint8, or floating point in [-1, 1]')
    k = unit.shape[1] // 8
    unit = unit.reshape(len(unit), 8, k, 8, k).mean((2, 4))
    return np.rint(unit * 16).astype(np.int64).reshape(len(unit), 64)


class Judge(NamedTuple):
    """What is known of the real digits."""

    svm: Any
    train: np.ndarray
    """Levels [N, 64] float64."""
    labels: np.ndarray
    """Of the training digits, [N]."""
    heldout: Moments
    """Moments of the held-out digits' decision values."""
    heldout_accuracy: float
    heldout_nearest: float

    def decisions(self, levels) -> np.ndarray:
        """Decision values [N, 10], one per class (scikit-learn's 'ovr' form)."""
        return self.svm.decision_function(levels)

    def nearest(self, levels) -> np.ndarray:
        """Euclidean distance [N] to the nearest training digit, in levels."""
        squares = np.square(levels).sum(1)[:, None] + np.square(self.train).sum(1) - 2.0 * levels @ self.train.T
        return np.sqrt(squares.min(1).clip(0))


def make_judge(train_images, train_labels, test_images, test_labels) -> Judge:
    """Trains the support vector machine (gamma 0.001, C 10, on levels 0..16) on the training digits only.

    Args:
        train_images, test_images: uint8 [N, S, S, 1].
        train_labels, test_labels: ints [N] in 0..9; every class must occur in training.

    Raises:
        ValueError: lengths differ, a class is missing, or nothing is held out.
    """
    arrays = [np.ascontiguousarray(a) for a in (train_images, train_labels, test_images, test_labels)]
    return _make_judge(*((a.tobytes(), a.shape, a.dtype.str) for a in arrays))


@lru_cache(maxsize=2)  # a run scores several times, against the same digits
def _make_judge(*packed) -> Judge:
    from sklearn.svm import SVC  # takes a second to import

    train_images, train_labels, test_images, test_labels = (np.frombuffer(b, t).reshape(s) for b, s, t in packed)
    train, test = to_levels(train_images, 'train_images'), to_levels(test_images, 'test_images')
    for split, levels, labels in (('train', train, train_labels), ('test', test, test_labels)):
        if labels.shape != (len(levels),):
            raise ValueError(f'{split}: {len(levels)} images but labels of shape {labels.shape}')
    if len(test) < 2:
        raise ValueError(f'{len(test)} held-out digits: at least 2 are needed, better hundreds')
    missing = sorted(set(range(CLASSES)) - set(train_labels.tolist()))
    if missing or not set(train_labels.tolist()) <= set(range(CLASSES)):
        raise ValueError(f'training labels {sorted(set(train_labels.tolist()))}: expected all of 0..9')
    svm = SVC(gamma=GAMMA, C=C, decision_function_shape='ovr').fit(train, train_labels)
    judge = Judge(svm, train.astype(np.float64), train_labels, moments(svm.decision_function(test)),
                  float((svm.predict(test) == test_labels).mean()), 0.0)
    return judge._replace(heldout_nearest=float(np.median(judge.nearest(test))))


class _State(NamedTuple):
    moments: Moments
    nearest: np.ndarray
    counts: np.ndarray
    correct: np.ndarray
    labelled: np.ndarray


def digits_report(train_images, train_labels, test_images, test_labels, key: str = 'image', label: str = 'label',
                  name: str = 'digits') -> Metric:
    """How good generated digits are, by a judge trained on real digits only (`make_judge`).

    Reads outputs[key], uint8 or floating point in [-1, 1], [B, S, S, 1], and outputs[label] [B] where present (the
    class that was asked for). Gives

    * accuracy: share read as the class asked for (absent without labels), beside accuracy_heldout of real digits;
    * frechet: Fréchet distance to the held-out digits in the 10 decision values;
    * nearest_train, nearest_train_heldout: median distance to the nearest training digit, in levels 0..16, of the
      generated and of the held-out digits; copies would show as a value near 0;
    * class_fraction (a list) and class_fraction_min: shares of the classes that the judge reads;
    * `name`_recipe: sample sizes and settings, without which the numbers cannot be compared.

    Raises:
        ValueError: as `make_judge`; at update for bad images or labels; at compute for fewer than 2 examples.
    """
    judge = make_judge(train_images, train_labels, test_images, test_labels)

    def init():
        return _State(empty(CLASSES), np.zeros(0), np.zeros(CLASSES), np.float64(0), np.float64(0))

    def update(state, outputs):
        levels = to_levels(fetch(outputs, key, name), key)
        if not len(levels):
            return state
        read = judge.svm.predict(levels)
        new = _State(moments(judge.decisions(levels)), judge.nearest(levels),
                     np.bincount(read, minlength=CLASSES).astype(np.float64), np.float64(0), np.float64(0))
        if label in outputs:
            asked = np.asarray(outputs[label])
            if asked.shape != read.shape:
                raise ValueError(f'metric {name}: {len(read)} images but {label!r} has shape {asked.shape}')
            new = new._replace(correct=np.float64((read == asked).sum()), labelled=np.float64(len(asked)))
        return merge(state, new)

    def merge(a, b):
        return _State(merge_moments(a.moments, b.moments), np.concatenate([a.nearest, b.nearest]), a.counts + b.counts,
                      a.correct + b.correct, a.labelled + b.labelled)

    def compute(state):
        n = float(state.moments.n)
        result = {'frechet': distance(state.moments, judge.heldout, f'{name}: frechet')}
        if state.labelled not in (0, n):
            raise ValueError(f'metric {name}: only {int(state.labelled)} of {int(n)} examples came with {label!r}')
        if state.labelled:
            result['accuracy'] = float(state.correct / n)
        share = state.counts / n
        return {**result, 'accuracy_heldout': judge.heldout_accuracy,
                'nearest_train': float(np.median(state.nearest)), 'nearest_train_heldout': judge.heldout_nearest,
                'class_fraction_min': float(share.min()), 'class_fraction': share.tolist(),
                f'{name}_recipe': {'n': int(n), 'train_n': len(judge.train), 'heldout_n': int(judge.heldout.n),
                                   'features': f'decision values of an SVM (rbf, gamma {GAMMA:g}, C {C:g})',
                                   'levels': 'rounded to 0..16'}}

    return Metric(init, update, merge, compute)


def calibrate(train_images, train_labels, test_images, test_labels) -> dict[str, float]:
    """The reference points of the scale for a split: what real digits and three cheats score.

    Distances of all training digits, of the first five and the first one of every class, repeated to 100 per class,
    and of the class means; with the median nearest distance of held-out digits. `PUBLISHED` holds them for the split
    of the module's docstring; arguments as `make_judge`.
    """
    judge = make_judge(train_images, train_labels, test_images, test_labels)

    def score(levels):
        return distance(moments(judge.decisions(levels)), judge.heldout)

    classes = [judge.train[judge.labels == c] for c in range(CLASSES)]
    return {'frechet_train': score(judge.train),
            'frechet_five_per_class': score(np.concatenate([np.resize(c[:5], (100, 64)) for c in classes])),
            'frechet_one_per_class': score(np.concatenate([np.resize(c[:1], (100, 64)) for c in classes])),
            'frechet_class_means': score(np.concatenate([np.tile(c.mean(0), (100, 1)) for c in classes])),
            'nearest_train_heldout': judge.heldout_nearest}
