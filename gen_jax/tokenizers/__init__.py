"""Text to token ids."""

from gen_jax.tokenizers.clip_bpe import ClipTokenizer, clip_bpe
from gen_jax.tokenizers.words import words

__all__ = ['ClipTokenizer', 'clip_bpe', 'words']
