"""One builder per family: where models meet losses meet samplers."""

from gen_jax.systems.clip import clip
from gen_jax.systems.diffusion import diffusion

__all__ = ['clip', 'diffusion']
