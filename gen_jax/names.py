"""Names in configs become functions: looked up in public modules, never registered."""

import difflib
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

__all__ = ['ConfigError', 'NAMESPACES', 'choices', 'keywords', 'lookup', 'make']

NAMESPACES = ('models', 'diffusion', 'diffusion.parameterisation', 'diffusion.times', 'diffusion.weighting',
              'diffusion.losses', 'sampling', 'systems', 'data.transforms', 'tokenizers', 'metrics')


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the remedy."""


def lookup(name: str) -> Any:
    """'namespace.thing' -> the public `thing` of `gen_jax.namespace`; 'package.module:thing' -> anything importable.

    Raises:
        ConfigError: with the nearest names and the choices.
    """
    if ':' in name:
        module, _, attribute = name.partition(':')
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as e:
            raise ConfigError(f'name {name!r}: {e}') from None
    namespace, _, attribute = name.rpartition('.')
    if namespace not in NAMESPACES:
        raise ConfigError(f'name {name!r}: expected one of ' + ', '.join(f'{n}.*' for n in NAMESPACES)
                          + ", or 'your.module:thing'")
    module = importlib.import_module(f'gen_jax.{namespace}')
    if attribute not in module.__all__:
        raise ConfigError(f'there is no {name!r}: {choices(attribute, module.__all__)}')
    return getattr(module, attribute)


def make(spec: Mapping | str, namespace: str = '', **extra) -> Any:
    """Calls the function that a spec names with its other items as keywords, nested specs first.

    Args:
        spec: {'name': 'diffusion.cosine', ...} or just the name.
        namespace: put before names without a dot.
        extra: further keywords, which the spec may not repeat.

    Raises:
        ConfigError: unknown name, or keywords that the function does not take (the choices are listed).
    """
    spec = {'name': spec} if isinstance(spec, str) else dict(spec)
    name = spec.pop('name', None)
    if not name:
        raise ConfigError(f'a spec needs a name: {spec}')
    name = name if '.' in name or ':' in name or not namespace else f'{namespace}.{name}'
    function = lookup(name)
    kwargs = _make_siblings(spec)
    kwargs.update(extra)
    accepted = _parameters(function)
    unknown = [] if accepted is None else [k for k in kwargs if k not in accepted]
    if unknown:
        raise ConfigError(f'{name} takes no {unknown[0]!r}: {choices(unknown[0], accepted)}')
    try:
        return function(**kwargs)
    except TypeError as e:  # factories that pass their keywords on
        wrong = re.search(r"unexpected keyword argument '(\w+)'", str(e))
        if wrong is None or wrong.group(1) not in kwargs:
            raise
        raise ConfigError(f'{name} takes no {wrong.group(1)!r}') from None


def _make_siblings(spec: Mapping) -> dict[str, Any]:
    """Makes the nested specs of one level. A parameter that a nested spec leaves out and for which a spec stands beside
    it is that sibling: `times: {'name': 'diffusion.times.uniform'}` gets the `process`. Numbers are not shared: the
    `steps` of a process are not those of sampling.
    """
    waits = {k: [p for p in _parameters(lookup(v['name'])) or () if p not in v and _is_spec(spec.get(p))]
             for k, v in spec.items() if _is_spec(v)}
    made = {}
    for k in sorted(spec, key=lambda k: len(waits.get(k, ()))):
        v = spec[k]
        made[k] = make(v, **{p: made[p] for p in waits[k] if p in made}) if k in waits else _make_nested(v)
    return {k: made[k] for k in spec}


def _is_spec(value) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get('name'), str) \
        and (value['name'].rpartition('.')[0] in NAMESPACES or ':' in value['name'])


def _make_nested(value):
    if _is_spec(value):
        return make(value)
    if isinstance(value, Mapping):
        return {k: _make_nested(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_make_nested(v) for v in value)
    return value


def _parameters(function) -> list[str] | None:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.name not in ('parent', 'name', 'self')]


def keywords(name: str) -> dict[str, Any]:
    """What a spec of that name may say, with defaults (inspect.Parameter.empty where there is none).

    A factory that passes keywords on to the class that it is annotated to return takes that class's.
    """
    function = lookup(name)
    parameters = inspect.signature(function).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    made = inspect.signature(function, eval_str=True).return_annotation
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if passes_on and inspect.isclass(made) and made is not inspect.Signature.empty:
        found = {**{p.name: p.default for p in inspect.signature(made).parameters.values()}, **found}
    return {k: v for k, v in found.items() if k not in ('parent', 'name', 'self')}


def choices(wrong: str, names) -> str:
    """A hint for a wrong name: the nearest ones, or all."""
    names = sorted(names)
    near = difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    tail = wrong.rsplit('.', 1)[-1]
    near = near or [n for n in names if n.rsplit('.', 1)[-1] == tail][:3]
    if near:
        return 'did you mean ' + ' or '.join(near) + '?'
    return 'choose from ' + ', '.join(names) if len(names) <= 60 else 'no name comes near'
