"""ADM's classifier of noisy images: the encoder half of its UNet and a pooling head."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.models.adm import CHANNEL_MULT, Trunk
from gen_jax.nn.attention import AttentionPool2d
from gen_jax.nn.initializers import torch_default
from gen_jax.nn.norms import GroupNorm
from gen_jax.types import Array

__all__ = [
    'ADMClassifier',
    'adm_classifier_digits',
    'adm_classifier_imagenet64',
    'adm_classifier_imagenet128',
    'adm_classifier_imagenet256',
    'adm_classifier_imagenet512',
    'adm_classifier_tiny',
]

POOLS = ('attention', 'adaptive', 'spatial', 'spatial_v2')


class ADMClassifier(Trunk):
    """log-odds of the classes of a noisy image; Dhariwal & Nichol, 2021 (https://arxiv.org/abs/2105.05233), §4.

    Attributes:
        (those of `gen_jax.models.adm.Trunk`, described at `ADMUNet`)
        num_classes: K.
        pool: the head: 'attention' (published: the mean looks up pixels), 'adaptive' (means over the last features),
            'spatial' or 'spatial_v2' (a perceptron on the means over the features of every block).

    Raises:
        ValueError: (on construction) unknown pool; 'attention' without num_head_channels.
    """

    num_classes: int = 1000
    pool: str = 'attention'

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ValueError(f'unknown pool {self.pool!r}; choose from {", ".join(POOLS)}')
        if self.pool == 'attention' and self.num_head_channels is None:
            raise ValueError("pool='attention' needs num_head_channels, the channels of a head")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, label: Array, *, deterministic: bool = True) -> Array:
        """Logits of p(class | noisy image).

        Args:
            x: [B, H, W, C].
            label: [B] or (), times of the order 0..1000, possibly fractional.
            deterministic: False drops out, with the rng 'dropout'.

        Returns:
            float32 [B, num_classes].

        Raises:
            ValueError: H or W not divisible by the down-sampling factor, or, with attention pooling, not the size that
                the weights were trained at; wrong channels or rank.
        """
        emb = self.embed(self.check(x, label))
        h, means = x.astype(self.dtype or jnp.float32), []
        for i, block in enumerate(self.input_blocks()):
            h = self.run(block, f'input_blocks.{i}', h, emb, deterministic)
            means.append(h.astype(jnp.float32).mean((1, 2)))
        h = self.run(self.middle_block(), 'middle_block', h, emb, deterministic).astype(jnp.float32)

        if self.pool in ('spatial', 'spatial_v2'):
            v2 = self.pool == 'spatial_v2'
            h = jnp.concatenate([*means, h.mean((1, 2))], -1)
            h = nn.Dense(2048, kernel_init=torch_default, name='out.0')(h)
            h = jax.nn.silu(GroupNorm(32, name='out.1')(h)) if v2 else jax.nn.relu(h)
            return nn.Dense(self.num_classes, kernel_init=torch_default, name='out.3' if v2 else 'out.2')(h)
        h = jax.nn.silu(GroupNorm(self.norm_num_groups, name='out.0')(h))
        if self.pool == 'attention':
            return AttentionPool2d(self.num_classes, h.shape[-1] // self.num_head_channels, name='out.2')(h)
        h = h.mean((1, 2), keepdims=True)
        return nn.Conv(self.num_classes, (1, 1), kernel_init=nn.initializers.zeros, name='out.3')(h)[:, 0, 0]


def _imagenet(image_size: int, overrides, num_res_blocks: int = 2) -> ADMClassifier:
    common = dict(image_size=image_size, channel_mult=CHANNEL_MULT[image_size], num_res_blocks=num_res_blocks,
                  attention_resolutions=(32, 16, 8), num_head_channels=64, resblock_updown=True)
    return ADMClassifier(**{**common, **overrides})


def adm_classifier_imagenet64(**overrides) -> ADMClassifier:
    """65,438,568 parameters; ADM, Table 11."""
    return _imagenet(64, overrides, num_res_blocks=4)


def adm_classifier_imagenet128(**overrides) -> ADMClassifier:
    """42,568,040 parameters; ADM, Table 11."""
    return _imagenet(128, overrides)


def adm_classifier_imagenet256(**overrides) -> ADMClassifier:
    """54,096,360 parameters; ADM, Table 11."""
    return _imagenet(256, overrides)


def adm_classifier_imagenet512(**overrides) -> ADMClassifier:
    """54,448,360 parameters; ADM, Table 11."""
    return _imagenet(512, overrides)


def adm_classifier_digits(**overrides) -> ADMClassifier:
    """Noisy 8x8 grey digits: about 0.4 M parameters, for CPUs."""
    common = dict(image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
                  attention_resolutions=(4,), norm_num_groups=8, num_head_channels=16, resblock_updown=True,
                  num_classes=10)
    return ADMClassifier(**{**common, **overrides})


def adm_classifier_tiny(**overrides) -> ADMClassifier:
    """A few thousand parameters, for tests."""
    return adm_classifier_digits(**{**dict(model_channels=8, norm_num_groups=4, num_head_channels=4), **overrides})
