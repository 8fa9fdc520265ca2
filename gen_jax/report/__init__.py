"""Runs compared: differences, means over seeds, tests, curves and pictures, as plain tables and as one HTML page.

    report = make_report(['runs/a', 'runs/b'])
    print(markdown(cross_table(report, 'guided/frechet')))
    write_report(report, 'out')
"""

from gen_jax.report.page import write_report
from gen_jax.report.summary import Cell, Report, make_report
from gen_jax.report.tables import cross_table, csv_text, markdown, runs_table, summary_markdown, summary_table

__all__ = ['Cell', 'Report', 'cross_table', 'csv_text', 'make_report', 'markdown', 'runs_table', 'summary_markdown',
           'summary_table', 'write_report']
