"""NCSNv2: the RefineNet of NCSN without noise-conditional norms, its output divided by sigma.

Song & Ermon 2020 (arXiv:2006.09011), Sec. 3.2 and Appendix B: a network scaled by 1 / sigma needs no other word on the
noise level, so any number of levels costs the same. Parameter names are those of its published code; the buffer
`sigmas` of its checkpoints is no parameter here but follows from sigma_begin, sigma_end and num_classes.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gen_jax.models.ncsn import DIGITS, STAGES, Stage, refine_net
from gen_jax.types import Array

__all__ = ['NCSNv2', 'ncsnv2_celeba', 'ncsnv2_cifar10', 'ncsnv2_digits', 'ncsnv2_ffhq', 'ncsnv2_lsun']

DEEPER = (Stage('res1', 'refine5', 1, down=False), Stage('res2', 'refine4', 2), Stage('res3', 'refine3', 2),
          Stage('res4', 'refine2', 4, dilation=2), Stage('res5', 'refine1', 4, dilation=4))
"""NCSNv2Deeper: two halvings of the resolution."""
DEEPEST = (*DEEPER[:3], Stage('res31', 'refine31', 2), *DEEPER[3:])
"""NCSNv2Deepest: three."""


class NCSNv2(nn.Module):
    """The score of every noise level: an unconditional network over sigma.

    Use with `diffusion.discrete_ve(sigma_begin, sigma_end, num_classes)` and `parameterisation.score(label=
    'descending')`; the loss weighted by sigma^2 (`weighting.sigma_power`) then regresses -eps with what stands before
    the division.

    Attributes:
        num_classes: number of sigmas.
        sigma_begin: the greatest sigma, label 0.
        sigma_end: the least sigma, label num_classes - 1; between them, a geometric progression.
        ngf, stages, center_input_sample, dtype: as in `gen_jax.models.ncsn.NCSN`.
    """

    num_classes: int = 232
    sigma_begin: float = 50.0
    sigma_end: float = 0.01
    ngf: int = 128
    stages: tuple[Stage, ...] = STAGES
    center_input_sample: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array, *, deterministic: bool = True) -> Array:
        """x [B, H, W, C], label [B] in 0 .. num_classes - 1 -> the score, float32 [B, H, W, C].

        Nothing is dropped out: `deterministic` is there for the sake of the other networks.

        Raises:
            ValueError: H or W not divisible by 2 for every stage that halves the resolution.
        """
        del deterministic
        label = jnp.broadcast_to(jnp.asarray(label).astype(jnp.int32), x.shape[:1])
        x = 2.0 * x - 1.0 if self.center_input_sample else x
        h = refine_net(x, label, self.stages, self.ngf, None, self.dtype)
        sigmas = np.exp(np.linspace(np.log(self.sigma_begin), np.log(self.sigma_end), self.num_classes))
        return h / jnp.asarray(sigmas, jnp.float32)[label][:, None, None, None]


def ncsnv2_cifar10(**kwargs) -> NCSNv2:
    """CIFAR-10, 32x32: 29,694,083 parameters."""
    return NCSNv2(**kwargs)


def ncsnv2_celeba(**kwargs) -> NCSNv2:
    """CelebA, 64x64: 29,694,083 parameters."""
    return NCSNv2(**{'num_classes': 500, 'sigma_begin': 90.0, **kwargs})


def ncsnv2_lsun(**kwargs) -> NCSNv2:
    """LSUN, 128x128 (NCSNv2Deeper): 83,445,379 parameters."""
    return NCSNv2(**{'num_classes': 1086, 'sigma_begin': 190.0, 'stages': DEEPER, **kwargs})


def ncsnv2_ffhq(**kwargs) -> NCSNv2:
    """FFHQ, 256x256 (NCSNv2Deepest): 94,132,611 parameters."""
    return NCSNv2(**{'num_classes': 2311, 'sigma_begin': 348.0, 'stages': DEEPEST, **kwargs})


def ncsnv2_digits(**kwargs) -> NCSNv2:
    """8x8 grey digits in [-1, 1], three stages."""
    return NCSNv2(**{'num_classes': 20, 'sigma_begin': 10.0, 'sigma_end': 0.02, 'ngf': 20, 'stages': DIGITS, **kwargs})
