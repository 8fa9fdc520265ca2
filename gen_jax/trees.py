"""Parameter trees by path: masks and rules by regex, where every leaf must match.

A leaf's path is its keys joined by '/', sub-module names keeping their dots:
'unet/down_blocks.0/resnets.0/conv1/kernel'.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from gen_jax.types import PyTree


def path_of(keypath) -> str:
    """A JAX key path as 'a/b/c'."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in keypath)


def flat(tree: PyTree) -> dict[str, Any]:
    """Path -> leaf."""
    return {path_of(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def map_with_path(f: Callable[..., Any], tree: PyTree, *rest) -> PyTree:
    """tree.map with f(path, leaf, ...)."""
    return jax.tree_util.tree_map_with_path(lambda p, *leaves: f(path_of(p), *leaves), tree, *rest)


def parse_rules(rules: Sequence[str], convert: Callable[[str], Any] = str) -> list[tuple[re.Pattern, Any]]:
    """Parses 'REGEX=VALUE' strings (split at the last '='), keeping their order.

    Raises:
        ValueError: naming the rule that has no '=', a bad regex or a bad value.
    """
    parsed = []
    for rule in rules:
        pattern, eq, value = rule.rpartition('=')
        try:
            if not eq:
                raise ValueError("expected 'REGEX=VALUE'")
            parsed.append((re.compile(pattern), convert(value)))
        except (ValueError, re.error) as e:
            raise ValueError(f'path rule {rule!r}: {e}') from None
    return parsed


def match(rules: Sequence[tuple[re.Pattern, Any]], tree: PyTree, what: str = 'path rules') -> PyTree:
    """A tree of the values of the first rule that matches each whole path.

    Raises:
        ValueError: listing leaves that no rule covers, or rules that are reached by no leaf (silence is an error).
    """
    used, missing = set(), []

    def find(path, _):
        for i, (pattern, value) in enumerate(rules):
            if pattern.fullmatch(path):
                used.add(i)
                return value
        missing.append(path)
        return None

    out = map_with_path(find, tree)
    if missing:
        raise ValueError(f'{what}: no rule matches {len(missing)} leaves, for instance {missing[:3]}; '
                         "add a last rule '.*=...'")
    idle = [p.pattern for i, (p, _) in enumerate(rules) if i not in used and p.pattern != '.*']
    if idle:
        raise ValueError(f'{what}: {idle} match no leaf; paths look like {list(flat(tree))[:3]}')
    return out


def joined(tree: PyTree) -> dict[str, Any]:
    """Torch-style key ('.'-joined path) -> leaf.

    Raises:
        ValueError: if two leaves join to one key (Orbax would restore such a tree wrongly without a word).
    """
    leaves = [(path.replace('/', '.'), leaf) for path, leaf in flat(tree).items()]
    twice = [k for k, n in Counter(k for k, _ in leaves).items() if n > 1]
    if twice:
        raise ValueError(f'two leaves share the joined key {twice[0]!r}; rename a sub-module')
    return dict(leaves)


def count(tree: PyTree) -> int:
    """Number of scalars in a tree of arrays or ShapeDtypeStructs."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def transfer(target: PyTree, source: Mapping[str, Any], rules: Sequence[tuple[re.Pattern, str]]) -> tuple[PyTree, list]:
    """Fills `target` with leaves of `source` (flat, by path), names mapped by regex.

    Args:
        rules: (REGEX, REPLACEMENT) from target paths to source paths; the first match wins; an empty replacement keeps
            the target's own leaf.

    Returns:
        (the new tree, the paths that kept their own leaf).

    Raises:
        ValueError: listing all missing and mis-shaped leaves at once.
    """
    problems, kept = [], []

    def pick(path, leaf):
        for pattern, replacement in rules:
            m = pattern.fullmatch(path)
            if m is None:
                continue
            name = m.expand(replacement)
            if not name:
                kept.append(path)
                return leaf
            found = source.get(name)
            if found is None:
                problems.append(f'{path}: the source has no {name!r}')
            elif found.shape != leaf.shape:
                problems.append(f'{path}: shape {leaf.shape} here, {found.shape} in the source')
            else:
                return found.astype(leaf.dtype)
            return leaf
        problems.append(f'{path}: no rule matches')
        return leaf

    out = map_with_path(pick, target)
    if problems:
        raise ValueError(f'{len(problems)} leaves cannot be initialised:\n  ' + '\n  '.join(problems[:20])
                         + ('\n  ...' if len(problems) > 20 else '')
                         + "\nmap names with init_map 'REGEX=REPLACEMENT', or keep the fresh value with 'REGEX='")
    return out, kept
