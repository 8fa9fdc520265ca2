"""From a researcher's settings to a sampler: what is compiled apart from what may change without compiling.

Settings are flat keywords (solver='dpm_solver_multistep', order=3, corrector='langevin', snr=0.16 ...), each routed to
the parts whose functions take it. A keyword whose default is a float is traced: it becomes an array leaf. All others
(orders, names, switches) are static: they are written, as JSON, into the *key* of the mapping that holds the leaves.
A pytree's keys are its structure, so jit compiles once for each combination of parts and never for a changed value.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from gen_jax import sampling
from gen_jax.names import choices
from gen_jax.types import Process, PyTree, Sampler

__all__ = ['bind', 'check_like', 'find', 'keywords', 'make', 'number', 'whole']


def find(name: str, kind: str = '') -> Callable:
    """The maker of that name in gen_jax.sampling; of a 'solver' or a 'corrector', a ValueError with the choices."""
    known = {'solver': sampling.SOLVERS, 'corrector': sampling.CORRECTORS}.get(kind)
    if known is not None and name not in known:
        raise ValueError(f'{kind} {name!r}: choose from {", ".join(known)}')
    return getattr(sampling, name)


def keywords(maker: Callable) -> dict[str, object]:
    """The keywords of a maker with their defaults, `process` apart."""
    return {p.name: p.default for p in inspect.signature(maker).parameters.values()
            if p.name != 'process' and p.default is not p.empty}


def check_like(name: str, value: object, default: object) -> None:
    """Refuses a setting whose type is not that of its default (a float may be given as an int).

    Raises:
        ValueError: naming the setting and what it should be.
    """
    kinds = {bool: 'True or False', int: 'an integer', float: 'a number', str: 'a name'}
    kind = type(default)
    if kind not in kinds or type(value) is kind or kind is float and type(value) is int:
        return
    raise ValueError(f'{name} must be {kinds[kind]}, got {value!r}')


def whole(name: str, value: object, least: int = 1) -> int:
    """An integer setting of at least `least`, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f'{name} must be an integer of at least {least}, got {value!r}')
    return value


def number(name: str, value: object) -> float:
    """A setting that is a number, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ValueError(f'{name} must be a number, got {value!r}')
    return float(value)


def _call(maker: Callable, process: Process, values: Mapping[str, object]):
    given = {'process': process} if 'process' in inspect.signature(maker).parameters else {}
    return maker(**given, **values)


def bind(parts: Sequence[tuple[str, Callable]], process: Process, settings: Mapping[str, object],
         also: Sequence[str] = ()) -> PyTree:
    """Settings routed to parts: {JSON of names and static keywords: [{traced keyword: array}, ...]}.

    Every part is built once on the host, so that it refuses what is out of range.

    Args:
        parts: (name, maker) in order.
        settings: values by keyword; a keyword that several parts take goes to all of them.
        also: names of further settings, for the message.

    Raises:
        ValueError: a setting that no part takes (with the choices), or a value that a part refuses.
    """
    takes = [keywords(maker) for _, maker in parts]
    known = {key for found in takes for key in found}
    for key in settings:
        if key not in known:
            names = ' and '.join(name for name, _ in parts)
            raise ValueError(f'unknown sampling setting {key!r} for {names}: {choices(key, {*known, *also})}')
    static, traced = [], []
    for (name, maker), found in zip(parts, takes, strict=True):
        values = {key: settings.get(key, default) for key, default in found.items()}
        for key, value in values.items():
            check_like(f'{name}: {key}', value, found[key])
        floats = {key: value for key, value in values.items() if isinstance(found[key], float)}
        _call(maker, process, values)
        traced.append({key: jnp.float32(value) for key, value in floats.items()})
        static.append([name, {key: value for key, value in values.items() if key not in floats}])
    return {json.dumps(static, sort_keys=True): traced}


def make(bound: PyTree, process: Process, find: Callable[[str], Callable]) -> list[Sampler]:
    """The parts that `bind` described, with their traced keywords, inside the jitted function.

    Args:
        find: part name -> maker.
    """
    (static, traced), = bound.items()
    return [_call(find(name), process, {**fixed, **leaves})
            for (name, fixed), leaves in zip(json.loads(static), traced, strict=True)]
