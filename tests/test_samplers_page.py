"""docs/samplers.md names exactly the rows of SAMPLERS, and its blocks run."""

import re
from pathlib import Path

import numpy as np

from experiments import samplers_table
from gen_jax.sampling import SAMPLERS

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'samplers.md'


def test_the_table_has_every_row():
    assert samplers_table.rows_of(PAGE.read_text()) == list(SAMPLERS), 'run python -m experiments.samplers_table'


def test_the_page_says_what_the_table_says():
    """Every cell that comes from SAMPLERS, and a measured order within 0.25 of the declared one, or above it. (The
    orders are measured anew by the tests of each solver.)"""
    lines = [line.split('|')[1:-1] for line in PAGE.read_text().splitlines() if line.startswith('| `') and
             line.count('|') == 10]
    assert len(lines) == len(SAMPLERS)
    for cells in lines:
        name, kind, order, measured, calls, stochastic, reference, *_ = (cell.strip() for cell in cells)
        row = SAMPLERS[name.strip('`')]
        assert (kind, order, stochastic) == (row.kind, str(row.order or '-'), 'yes' if row.stochastic else 'no'), name
        assert float(calls) == row.calls and reference == row.reference, name
        assert row.order is None or float(measured.split()[0]) > row.order - 0.25, name


def test_the_measurements():
    """On one solver, so that the command cannot rot."""
    np.testing.assert_allclose(samplers_table.orders('heun'), 2.0, atol=0.1)
    assert samplers_table.calls('heun') == 2


def test_the_blocks_run():
    scope = {'__name__': 'samplers'}
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)
    assert len(blocks) == 6
    for i, block in enumerate(blocks):
        exec(compile(block, f'samplers block {i + 1}', 'exec'), scope)
