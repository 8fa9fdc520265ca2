"""Sampling: the scan (base), solvers and grids."""

from gen_jax.sampling.base import chain, prior, repeat, sample
from gen_jax.sampling.grids import grid
from gen_jax.sampling.solvers import ddim, ddpm, euler, heun

__all__ = ['sample', 'chain', 'repeat', 'prior', 'grid', 'ddpm', 'ddim', 'euler', 'heun']
