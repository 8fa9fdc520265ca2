"""Initial values that published code relies on."""

import flax.linen as nn

__all__ = ['torch_default']

torch_default = nn.initializers.variance_scaling(1.0 / 3.0, 'fan_in', 'uniform')
"""torch's own for kernels of convolutions and dense layers: uniform within +-fan_in^-1/2. (Its random biases start at
zero here.)"""
