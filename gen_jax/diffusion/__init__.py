"""Diffusion as pure maths: process, parameterisation, times, weighting, loss, guidance.

The constructors of `gen_jax.diffusion.process` are re-exported here, so that a config names a process as
`diffusion.cosine`. The other parts are looked up in their own modules, since 'edm' is a process and also a
parameterisation.
"""

from gen_jax.diffusion.process import (
    cosine,
    discrete,
    discrete_ddpm,
    discrete_ve,
    edm,
    flow,
    linear_log_snr,
    sub_vp,
    ve,
    vp,
)

__all__ = ['vp', 'sub_vp', 've', 'cosine', 'linear_log_snr', 'edm', 'flow', 'discrete', 'discrete_ddpm', 'discrete_ve']
