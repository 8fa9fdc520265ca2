"""The residual block of the diffusion UNets."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.activations import activation
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.resampling import average_pool, conv_init, upsample_nearest
from gen_jax.types import Array

__all__ = ['ResnetBlock2D']


class ResnetBlock2D(nn.Module):
    """norm, act, [resample,] conv1, + time, norm, act, dropout, conv2, + shortcut.

    Ho et al., 2020 (https://arxiv.org/abs/2006.11239), Appendix B; `time_embedding_norm='scale_shift'` is the
    adaptive group norm GroupNorm(h) (1 + s) + b of Dhariwal & Nichol, 2021 (https://arxiv.org/abs/2105.05233), §3.1,
    and `resample` the resampling residual block of BigGAN that they adopt. conv2 starts at zero, so that a fresh block
    is its shortcut.

    Attributes:
        features: output channels; a 1x1 `conv_shortcut` appears if they differ from the input's.
        num_groups: of both norms.
        epsilon: of both norms.
        time_embedding_norm: 'default' adds the projected embedding, 'scale_shift' modulates the second norm.
        resample: 'down' (2x2 means), 'up' (nearest) or None.
        output_scale_factor: the sum is divided by it.
        act_fn: see `gen_jax.nn.activations`.
        dropout: rate; needs the rng 'dropout' unless deterministic.
        dtype: compute dtype; parameters are float32.
    """

    features: int
    num_groups: int = 32
    epsilon: float = 1e-6
    time_embedding_norm: Literal['default', 'scale_shift'] = 'default'
    resample: Literal['down', 'up'] | None = None
    output_scale_factor: float = 1.0
    act_fn: str = 'silu'
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, temb: Array | None = None, *, deterministic: bool = True) -> Array:
        """x [B, H, W, C], temb [B, E] or None -> [B, H', W', features]."""
        act = activation(self.act_fn)
        resample = {'down': average_pool, 'up': upsample_nearest, None: lambda y: y}[self.resample]

        h = act(GroupNorm(self.num_groups, self.epsilon, self.dtype, name='norm1')(x))
        x, h = resample(x), resample(h)
        h = nn.Conv(self.features, (3, 3), padding=1, kernel_init=conv_init, dtype=self.dtype, name='conv1')(h)

        norm2 = GroupNorm(self.num_groups, self.epsilon, self.dtype, name='norm2')
        if temb is None:
            h = norm2(h)
        else:
            width = 2 * self.features if self.time_embedding_norm == 'scale_shift' else self.features
            time = nn.Dense(width, kernel_init=conv_init, dtype=self.dtype, name='time_emb_proj')(act(temb))
            time = time[:, None, None]
            if self.time_embedding_norm == 'scale_shift':
                scale, shift = jnp.split(time, 2, -1)
                h = norm2(h) * (1 + scale) + shift
            else:
                h = norm2(h + time)

        h = nn.Dropout(self.dropout)(act(h), deterministic=deterministic)
        zeros = nn.initializers.zeros
        h = nn.Conv(self.features, (3, 3), padding=1, kernel_init=zeros, dtype=self.dtype, name='conv2')(h)
        if x.shape[-1] != self.features:
            x = nn.Conv(self.features, (1, 1), kernel_init=conv_init, dtype=self.dtype, name='conv_shortcut')(x)
        return (x + h) / self.output_scale_factor
