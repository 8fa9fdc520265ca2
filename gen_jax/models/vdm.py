"""The networks of variational diffusion models: the noise that was added, and the schedule that adds it.

Kingma et al., 2021 (https://arxiv.org/abs/2107.00630), Appendices A, B and H. Parameters carry the names of the
published code's, which is in Flax: '/'.join(path) is a key of its checkpoints.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.nn.attention import Attention
from gen_jax.nn.embeddings import timestep_embedding
from gen_jax.nn.monotone import MonotoneLinear, MonotoneMLP
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.remat import recomputed
from gen_jax.types import Array

__all__ = [
    'VDM',
    'vdm_cifar10',
    'vdm_cifar10_aug',
    'vdm_digits',
    'vdm_imagenet32',
    'vdm_imagenet64',
    'vdm_tiny',
]

GAMMA_TYPES = ('learnable_scalar', 'learnable_nnet', 'fixed')
ATTN_NAMES = {'group_norm': 'GroupNorm_0', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out.0': 'proj_out'}
lecun = nn.initializers.lecun_normal()


def fourier_features(x: Array, exponents: tuple[int, ...]) -> Array:
    """sin and cos(2^n 2 pi x), n in exponents: [..., C] -> [..., 2 len(exponents) C]; VDM, Appendix C.

    They show the network details as fine as a grey level. Computed in float32, as the angles are large.
    """
    waves = jnp.asarray([2.0**n * 2 * np.pi for n in exponents], jnp.float32)
    angle = (x.astype(jnp.float32)[..., None] * waves).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class ResnetBlock(nn.Module):
    """norm, swish, conv1, + time, norm, swish, dropout, conv2, + shortcut; VDM, Appendix B."""

    features: int
    num_groups: int = 32
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, cond: Array, deterministic: bool) -> Array:
        """x [B, H, W, C], cond [B, E] -> [B, H, W, features]."""
        def norm(i, h):
            return jax.nn.swish(GroupNorm(self.num_groups, 1e-6, self.dtype, name=f'GroupNorm_{i}')(h))

        def conv(name, init=lecun):
            return nn.Conv(self.features, (3, 3), kernel_init=init, dtype=self.dtype, name=name)

        zeros = nn.initializers.zeros
        h = conv('conv1')(norm(0, x))
        time = nn.Dense(self.features, use_bias=False, kernel_init=zeros, dtype=self.dtype, name='cond_proj')(cond)
        h = norm(1, h + time[:, None, None])
        h = conv('conv2', zeros)(nn.Dropout(self.dropout)(h, deterministic=deterministic))
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, name='nin_shortcut')(x)
        return x + h


class ScoreUNet(nn.Module):
    """eps_hat(z, gamma): a UNet that keeps the resolution. Fields: see `VDM`."""

    gamma_min: float
    gamma_max: float
    n_embd: int
    n_layer: int
    dropout: float
    exponents: tuple[int, ...]
    with_attention: bool
    num_groups: int
    dtype: jnp.dtype | None
    attention_implementation: str | None
    remat: str

    @nn.compact
    def __call__(self, z: Array, gamma: Array, conditioning: Array, deterministic: bool) -> Array:
        """z [B, H, W, C], gamma [B], conditioning [B] -> float32, the shape of z."""
        width = self.n_embd

        def block(name, x):
            made = ResnetBlock(width, self.num_groups, self.dropout, self.dtype, name=name)
            return recomputed(made, self.remat)(x, cond, deterministic=deterministic)

        def attend(name, x):
            made = Attention(width, self.num_groups, 1e-6, dtype=self.dtype, names=ATTN_NAMES, kernel_init=lecun,
                             implementation=self.attention_implementation, name=name)
            return recomputed(made, self.remat)(x)

        t = (gamma - self.gamma_min) / (self.gamma_max - self.gamma_min)
        cond = jnp.concatenate([timestep_embedding(1000.0 * t, width), conditioning[:, None]], -1)
        for name in ('dense0', 'dense1'):
            cond = jax.nn.swish(nn.Dense(4 * width, name=name)(cond))

        h = jnp.concatenate([z, fourier_features(z, self.exponents)], -1) if self.exponents else z
        h = nn.Conv(width, (3, 3), dtype=self.dtype, name='conv_in')(h.astype(self.dtype or jnp.float32))
        skips = [h]
        for i in range(self.n_layer):
            h = block(f'down.block_{i}', h)
            h = attend(f'down.attn_{i}', h) if self.with_attention else h
            skips.append(h)
        h = block('mid.block_2', attend('mid.attn_1', block('mid.block_1', h)))
        for i in range(self.n_layer + 1):
            h = block(f'up.block_{i}', jnp.concatenate([h, skips.pop()], -1))
            h = attend(f'up.attn_{i}', h) if self.with_attention else h
        h = jax.nn.swish(GroupNorm(self.num_groups, 1e-6, jnp.float32, name='GroupNorm_0')(h))
        return z + nn.Conv(z.shape[-1], (3, 3), kernel_init=nn.initializers.zeros, name='conv_out')(h)


class VDM(nn.Module):
    """The noise predictor `score_model` and the schedule `gamma`, gamma(t) = -log(alpha_t^2 / sigma_t^2).

    The fields are those of the published configurations.

    Attributes:
        gamma_type: 'learnable_scalar' (a line), 'learnable_nnet' (a monotone perceptron) or 'fixed' (a fixed line).
        gamma_min: gamma(0) of a fresh schedule; the network is told (gamma - gamma_min) / (gamma_max - gamma_min).
        gamma_max: gamma(1) of a fresh schedule.
        sm_n_embd: channels.
        sm_n_layer: residual blocks on the way down; one more on the way up. The resolution stays.
        sm_pdrop: dropout; needs the rng 'dropout' unless deterministic.
        with_fourier_features: appends sines and cosines of the input.
        fourier_exponents: their frequencies are 2^n; the finest should have a period of one grey level, in [-1, 1].
        with_attention: attention after every block, not only in the middle.
        norm_num_groups: divides sm_n_embd; 32 in the published weights.
        dtype: compute dtype of the blocks; parameters, schedule, embeddings and the last layer are float32.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.

    Raises:
        ValueError: (on construction) unknown gamma_type, gamma_min not below gamma_max.
    """

    gamma_type: str = 'learnable_scalar'
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    sm_n_embd: int = 128
    sm_n_layer: int = 32
    sm_pdrop: float = 0.1
    with_fourier_features: bool = True
    fourier_exponents: tuple[int, ...] = (6, 7)
    with_attention: bool = False
    norm_num_groups: int = 32
    dtype: jnp.dtype | None = None
    attention_implementation: str | None = None
    remat: str = ''

    def __post_init__(self):
        if self.gamma_type not in GAMMA_TYPES:
            raise ValueError(f'unknown gamma_type {self.gamma_type!r}; choose from {", ".join(GAMMA_TYPES)}')
        if not self.gamma_min < self.gamma_max:
            raise ValueError(f'gamma_min must be below gamma_max, got {self.gamma_min} and {self.gamma_max}')
        super().__post_init__()

    def setup(self):
        self.score_model = ScoreUNet(
            self.gamma_min, self.gamma_max, self.sm_n_embd, self.sm_n_layer, self.sm_pdrop,
            tuple(self.fourier_exponents) if self.with_fourier_features else (), self.with_attention,
            self.norm_num_groups, self.dtype, self.attention_implementation, self.remat)
        if self.gamma_type != 'fixed':
            kind = MonotoneLinear if self.gamma_type == 'learnable_scalar' else MonotoneMLP
            self.gamma = kind(self.gamma_min, self.gamma_max)

    def noise_level(self, t: Array) -> Array:
        """gamma(t), increasing; t in [0, 1] of any shape -> the same shape, float32."""
        if self.gamma_type == 'fixed':
            return self.gamma_min + (self.gamma_max - self.gamma_min) * jnp.asarray(t, jnp.float32)
        return self.gamma(t)

    def predict_noise(self, z: Array, gamma: Array, conditioning: Array | None = None, *,
                      deterministic: bool = True) -> Array:
        """eps_hat for z = alpha x0 + sigma eps at -log(alpha^2 / sigma^2) = gamma.

        Args:
            z: [B, H, W, C].
            gamma: [B] or ().
            conditioning: a number per image [B]; None is 0, as for unconditional models.
            deterministic: False drops out, with the rng 'dropout'.

        Returns:
            float32, the shape of z.

        Raises:
            ValueError: z, gamma or conditioning of another rank or batch size.
        """
        if z.ndim != 4:
            raise ValueError(f'z is {z.shape}; this network takes [B, H, W, C]')
        given = {'gamma': gamma, 'conditioning': 0.0 if conditioning is None else conditioning}
        for name, value in given.items():
            if jnp.shape(value) not in ((), (1,), z.shape[:1]):
                raise ValueError(f'{name} is {jnp.shape(value)}; give one number, or one per image: ({z.shape[0]},)')
        given = {k: jnp.broadcast_to(jnp.asarray(v, jnp.float32), z.shape[:1]) for k, v in given.items()}
        return self.score_model(z, **given, deterministic=deterministic)

    def __call__(self, z: Array, t: Array, conditioning: Array | None = None, *, deterministic: bool = True) -> Array:
        """eps_hat at the times t [B] in [0, 1], which the schedule makes levels of: float32, the shape of z."""
        return self.predict_noise(z, self.noise_level(t), conditioning, deterministic=deterministic)


def vdm_cifar10(**overrides) -> VDM:
    """CIFAR-10: 30,578,181 parameters, 2 of them the schedule's; VDM, Table 1 (2.65 bits/dim)."""
    return VDM(**overrides)


def vdm_cifar10_aug(**overrides) -> VDM:
    """CIFAR-10 with augmentation, learned schedule: 122,140,677 parameters; the paper's has with_attention=True."""
    return VDM(**{**dict(gamma_type='learnable_nnet', sm_n_embd=256, sm_pdrop=0.05), **overrides})


def vdm_imagenet32(**overrides) -> VDM:
    """ImageNet 32: 122,137,605 parameters; VDM, Table 1 (3.72 bits/dim)."""
    return VDM(**{**dict(sm_n_embd=256), **overrides})


def vdm_imagenet64(**overrides) -> VDM:
    """ImageNet 64: 237,603,845 parameters; VDM, Table 1 (3.40 bits/dim)."""
    return VDM(**{**dict(sm_n_embd=256, sm_n_layer=64), **overrides})


def vdm_digits(**overrides) -> VDM:
    """8x8 grey digits of 17 levels: about 0.5 M parameters, for CPUs. The finest features are a level wide."""
    return VDM(**{**dict(gamma_min=-8.0, sm_n_embd=48, sm_n_layer=2, fourier_exponents=(2, 3), norm_num_groups=16),
                  **overrides})


def vdm_tiny(**overrides) -> VDM:
    """A few thousand parameters, for tests."""
    return vdm_digits(**{**dict(sm_n_embd=8, sm_n_layer=1, norm_num_groups=4), **overrides})
