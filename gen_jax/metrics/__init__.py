"""Metrics: (init, update, merge, compute) over host arrays in float64; each says by what recipe it was computed.

`compute` returns floats by name, and beside them entries that are no numbers: `NAME_recipe` dicts and lists.
"""

from gen_jax.metrics.accuracy import zero_shot_accuracy
from gen_jax.metrics.digits import digits_report
from gen_jax.metrics.frechet import frechet
from gen_jax.metrics.mean import binned, mean
from gen_jax.metrics.psnr import psnr
from gen_jax.metrics.scenes import scenes

__all__ = ['binned', 'digits_report', 'frechet', 'mean', 'psnr', 'scenes', 'zero_shot_accuracy']
