"""Text to token ids."""

from gen_jax.tokenizers.words import words

__all__ = ['words']
