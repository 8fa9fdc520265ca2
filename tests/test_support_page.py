"""docs/support-matrix.md says what the code has: a model that is added, or of another size, must be in it."""

import re

import pytest

from experiments import support_matrix
from gen_jax import models
from gen_jax.interop.classes import CLASSES, published_name
from gen_jax.pipelines.folders import CLASSES as PIPELINES
from tests.models import test_sizes

PAGE = support_matrix.PAGE.read_text()


def test_the_page_is_current():
    """Names, classes, sizes and formats; tests/models/test_sizes.py holds the sizes against the factories."""
    assert not support_matrix.problems(PAGE), 'run python -m experiments.support_matrix'


def test_every_published_class_has_a_row():
    assert {row.kind[0] for row in support_matrix.rows()} >= {f'{r.library} `{name}`' for name, r in CLASSES.items()}


def test_a_new_model_and_another_size_are_noticed(monkeypatch):
    monkeypatch.setattr(models, '__all__', [*models.__all__, 'newnet_64', 'newnet_digits'])
    assert support_matrix.problems(PAGE) == ['newnet_64 is in no row: give its size in tests/models/test_sizes.py']
    monkeypatch.undo()
    *same, size = test_sizes.SIZES['SD1.5/unet']
    monkeypatch.setitem(test_sizes.SIZES, 'SD1.5/unet', (*same, size + 1))
    lacks, has = support_matrix.problems(PAGE)
    assert '859,520,965' in lacks and '859,520,964' in has


def test_errors_are_within_what_the_tests_assert():
    errors = [float(cells[-1].split()[0]) for cells in support_matrix.cells_of(PAGE, 'models') if cells[-1] != '-']
    assert len(errors) > 90 and 0 < min(errors) and max(errors) < 1e-5
    for cells in support_matrix.cells_of(PAGE, 'pipelines'):
        assert all(0 <= int(v.removeprefix('≤ ')) <= 2 for v in cells[2:]) and len(cells) == 6


def test_what_is_refused_is_refused():
    section = PAGE[PAGE.index('## Not supported'):]
    (classes,), (pipelines,) = (re.findall(rf'^\| other {what}(.*?) \|', section, re.M) for what in
                                ('classes in `config.json`', 'pipelines'))
    for name in re.findall(r'`(\w+)`', classes):
        with pytest.raises(ValueError, match=f'{name}.*which gen_jax does not have'):
            published_name({'_class_name': name}, 'config.json')
    named = re.findall(r'`(\w+Pipeline)`', pipelines)
    assert len(named) > 3 and not set(named) & set(PIPELINES)


@pytest.mark.slow
def test_errors_are_what_is_measured():
    """Rounding differs from machine to machine, and with the compiler's flags."""
    for row, cells in zip(support_matrix.rows(), support_matrix.cells_of(PAGE, 'models'), strict=True):
        if row.kind[1]:
            measured, said = (float(cell.split()[0]) for cell in (support_matrix.measured(row.kind[1]), cells[-1]))
            assert said / 5 < measured < 5 * said, row
