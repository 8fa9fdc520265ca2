"""The one wiring point: a config becomes data, system, metrics, frozen weights and state.

Nothing else sees all the parts.
"""

from gen_jax.build.evaluators import make_evaluator
from gen_jax.build.load import Loaded, load, predictor_for
from gen_jax.build.parts import make_system, open_split
from gen_jax.build.run import build

__all__ = ['Loaded', 'build', 'load', 'make_evaluator', 'make_system', 'open_split', 'predictor_for']
