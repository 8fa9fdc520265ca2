"""NCSN: the noise-conditional score network, a RefineNet of dilated convolutions with InstanceNorm++.

Song & Ermon 2019 (arXiv:1907.05600), Appendix A. Parameter names are those of its published code, whose class is
CondRefineNetDilated.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.refinenet import InstanceNormPlus, RefineBlock, ResidualBlock, torch_init
from gen_jax.types import Array

__all__ = ['NCSN', 'Stage', 'ncsn_cifar10', 'ncsn_digits', 'ncsn_mnist']


class Stage(NamedTuple):
    """Two residual blocks on the way down, and the refinement block that meets their output on the way up."""

    name: str
    refine: str
    features: int
    """Output channels over ngf."""
    down: bool = True
    """Whether the first block halves the resolution, or dilates in its stead."""
    dilation: int | None = None


STAGES = (Stage('res1', 'refine4', 1, down=False), Stage('res2', 'refine3', 2), Stage('res3', 'refine2', 2, dilation=2),
          Stage('res4', 'refine1', 2, dilation=4))
"""NCSN and NCSNv2: one halving of the resolution."""
DIGITS = (Stage('res1', 'refine3', 1, down=False), Stage('res2', 'refine2', 2), Stage('res3', 'refine1', 2, dilation=2))
"""For 8x8 pictures: without the dilation of 4, which sees 4x4 features through its middle tap only."""


def refine_net(x: Array, label: Array, stages: tuple[Stage, ...], ngf: int, num_classes: int | None, dtype) -> Array:
    """The trunk, called from within a compact module: x [B, H, W, C] -> [B, H, W, C], not divided by sigma.

    Args:
        label: int32 [B], read where num_classes is not None.

    Raises:
        ValueError: H or W not divisible by 2 for every stage that halves.
    """
    factor = 2 ** sum(stage.down and stage.dilation is None for stage in stages)
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(f'x must be [B, H, W, C] with H and W divisible by {factor}, got {x.shape}; '
                         'resize or pad the images.')
    channels, cond = x.shape[-1], {'num_classes': num_classes, 'dtype': dtype}
    h = nn.Conv(ngf, (3, 3), padding=1, kernel_init=torch_init, dtype=dtype, name='begin_conv')(x)
    skips = []
    for stage in stages:
        for i in range(2):
            down = stage.down and i == 0
            h = ResidualBlock(stage.features * ngf, down, stage.dilation, **cond, name=f'{stage.name}.{i}')(h, label)
        skips.append(h)
    refined = None
    for k in reversed(range(len(stages))):
        inputs = [skips[k]] if refined is None else [skips[k], refined]
        block = RefineBlock(stages[max(k - 1, 0)].features * ngf, k == 0, **cond, name=stages[k].refine)
        refined = block(inputs, label)
    h = nn.elu(InstanceNormPlus(**cond, name='normalizer')(refined, label))
    h = nn.Conv(channels, (3, 3), padding=1, kernel_init=torch_init, dtype=dtype, name='end_conv')(h)
    return h.astype(jnp.float32)


class NCSN(nn.Module):
    """The score of every noise level, told apart by its normalisations.

    Use with `diffusion.discrete_ve` and `parameterisation.score(label='descending')`: the label is the row of the table
    counted from the greatest sigma, and the output is the score itself, of the order 1 / sigma.

    Attributes:
        num_classes: number of sigmas.
        ngf: width of the first stage.
        stages: from the highest resolution to the lowest.
        center_input_sample: maps an input in [0, 1] to [-1, 1] first, as the published networks do: images, sigmas and
            score are then those of [0, 1]. On images in [-1, 1] the same noise has twice the sigma.
        dtype: compute dtype; parameters, norms and the output are float32.

    Example:
        >>> net = ncsn_digits()
        >>> x, label = jnp.zeros((2, 8, 8, 1)), jnp.array([0, 9])
        >>> net.apply(net.init(jax.random.key(0), x, label), x, label).shape
        (2, 8, 8, 1)
    """

    num_classes: int = 10
    ngf: int = 128
    stages: tuple[Stage, ...] = STAGES
    center_input_sample: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array, *, deterministic: bool = True) -> Array:
        """x [B, H, W, C], label [B] in 0 .. num_classes - 1 (outside: NaN) -> the score, float32 [B, H, W, C].

        Nothing is dropped out: `deterministic` is there for the sake of the other networks.

        Raises:
            ValueError: H or W not divisible by 2.
        """
        del deterministic
        label = jnp.broadcast_to(jnp.asarray(label).astype(jnp.int32), x.shape[:1])
        x = 2.0 * x - 1.0 if self.center_input_sample else x
        return refine_net(x, label, self.stages, self.ngf, self.num_classes, self.dtype)


def ncsn_mnist(**kwargs) -> NCSN:
    """MNIST, 28x28 grey: 7,638,657 parameters."""
    return NCSN(**{'ngf': 64, **kwargs})


def ncsn_cifar10(**kwargs) -> NCSN:
    """CIFAR-10 and CelebA, 32x32 colour: 30,117,635 parameters."""
    return NCSN(**kwargs)


def ncsn_digits(**kwargs) -> NCSN:
    """8x8 grey digits, three stages."""
    return NCSN(**{'ngf': 20, 'stages': DIGITS, **kwargs})
