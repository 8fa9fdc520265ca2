"""What a program costs: floating-point operations, collectives, and the time that a named chip needs at least."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.extend.core
import numpy as np

from gen_jax.config import choices

__all__ = ['CHIPS', 'Chip', 'collectives', 'find_chip', 'flops_of', 'roofline']


class Chip(NamedTuple):
    """Published peaks of one accelerator."""

    name: str
    bfloat16: float
    """FLOP/s of dense matrix products (without structured sparsity)."""
    float32: float
    """The same for float32 inputs at JAX's default precision: TF32 on GPUs, one bfloat16 pass on TPUs."""
    bandwidth: float
    """Bytes/s of the device memory."""
    memory: float
    """Bytes of device memory, nominal."""


# GPUs: NVIDIA's data sheets of the SXM boards: "A100 80GB Tensor Core GPU" (2021), "H100 Tensor Core GPU" (2023) and
# "H200 Tensor Core GPU" (2024); the figures given there with sparsity are halved. TPUs, per chip:
# https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p and .../v6e, "System architecture".
CHIPS = {c.name: c for c in (
    Chip('A100', 312e12, 156e12, 2.039e12, 80e9),
    Chip('H100', 989.5e12, 494.7e12, 3.35e12, 80e9),
    Chip('H200', 989.5e12, 494.7e12, 4.8e12, 141e9),
    Chip('v4', 275e12, 275e12, 1.228e12, 32 * 2**30),
    Chip('v5e', 197e12, 197e12, 0.819e12, 16 * 2**30),
    Chip('v5p', 459e12, 459e12, 2.765e12, 95 * 2**30),
    Chip('v6e', 918e12, 918e12, 1.638e12, 32 * 2**30),
)}


def find_chip(name: str) -> Chip:
    """The chip of that name, in any case; ValueError with the nearest names if there is none."""
    found = {k.lower(): c for k, c in CHIPS.items()}.get(name.lower().removeprefix('tpu').strip(' -_'))
    if found is None:
        raise ValueError(f'unknown chip {name!r}: {choices(name, CHIPS)} (known: {", ".join(CHIPS)})')
    return found


def flops_of(jaxpr) -> Counter:
    """FLOPs of the matrix products and convolutions of a jaxpr, by the dtype of their inputs.

    Two per multiply-add; loops as often as they run, `cond` as its dearest branch; what recomputation repeats counts
    again. Elementwise work is left out. A `while` of unknown length counts once and is noted under 'unknown loops'.
    """
    total = Counter()
    for eqn in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            lhs = eqn.invars[0].aval
            total[str(lhs.dtype)] += 2 * _size(eqn.outvars[0].aval) * int(np.prod([lhs.shape[i] for i in contracted]))
        elif name == 'conv_general_dilated':
            lhs, rhs = (v.aval for v in eqn.invars[:2])
            taps = _size(rhs) // rhs.shape[params['dimension_numbers'].rhs_spec[0]]
            # Zeros that a transposed convolution puts between its inputs are no work.
            total[str(lhs.dtype)] += 2 * _size(eqn.outvars[0].aval) * taps // int(np.prod(params['lhs_dilation']))
        elif name == 'cond':
            total += max((flops_of(b) for b in params['branches']), key=_sum)
        elif name == 'while':
            total += flops_of(params['body_jaxpr'])
            total['unknown loops'] += 1
        else:
            times = params['length'] if name == 'scan' else params['mesh'].size if name == 'shard_map' else 1
            for inner in _jaxprs(params):
                for key, value in flops_of(inner).items():
                    total[key] += value * (1 if key == 'unknown loops' else times)
    return total


def _sum(flops: Counter) -> int:
    return sum(v for k, v in flops.items() if k != 'unknown loops')


def _size(aval) -> int:
    return int(np.prod(aval.shape, dtype=np.int64))


def _jaxprs(params: Mapping[str, Any]):
    kinds = (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr)
    for value in params.values():
        for v in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(v, kinds):
                yield v


KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
CALL = re.compile(r'= (.*?) (' + '|'.join(KINDS) + r')(-start)?\(')
SHAPE = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {'count', 'bytes'}} of a compiled program: bytes of the results on one device, once per line of the
    program (what a loop repeats counts once)."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind, started in CALL.findall(text):
        sizes = [int(bits or 8) * int(np.prod([int(d) for d in dims.split(',') if d], dtype=np.int64)) // 8
                 for _, bits, dims in SHAPE.findall(shapes)]
        # The tuple of an asynchronous start holds the operands, too.
        size = max(sizes) if started and kind != 'all-reduce' else sum(sizes)
        row = found.setdefault(kind, {'count': 0, 'bytes': 0})
        row['count'] += 1
        row['bytes'] += size
    return found


def roofline(chip: Chip, flops: Mapping[str, float], moved: float | None, useful: float) -> dict[str, Any]:
    """The least time of a step on one chip: the longer of computing and of moving memory (Williams et al. 2009,
    https://doi.org/10.1145/1498765.1498785).

    Args:
        flops: by dtype, on one chip, recomputation included.
        moved: bytes to and from the device memory on one chip; None: unknown, computing alone counts.
        useful: FLOPs of the model on one chip, without recomputation: the numerator of MFU.

    Returns:
        {'chip', 'compute_seconds', 'memory_seconds', 'seconds', 'bound', 'mfu', 'peak_flops'}: MFU is relative to the
        peak of the dtype that does most of the work.
    """
    peaks = {k: chip.float32 if k in ('float32', 'float64') else chip.bfloat16 for k in flops}
    compute = sum(v / peaks[k] for k, v in flops.items())
    memory = None if moved is None else moved / chip.bandwidth
    seconds = max(compute, memory or 0.0)
    peak = peaks[max(flops, key=flops.get)] if flops else chip.float32
    return {'chip': chip.name, 'compute_seconds': compute, 'memory_seconds': memory, 'seconds': seconds,
            'bound': 'memory' if memory and memory > compute else 'compute', 'peak_flops': peak,
            'mfu': useful / (peak * seconds) if seconds else 0.0}
