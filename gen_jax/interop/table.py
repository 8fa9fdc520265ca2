"""What a conversion would do, key by key, before anything is read or written."""

import math

from gen_jax.interop.load import Part

__all__ = ['lines']


def lines(name: str, part: Part) -> list[str]:
    """A table of a part's keys: those that do not fit first, with the nearest name on the other side.

    Args:
        name: of the part, for the headline.
    """
    match, shapes = part.match(), {k: v.shape for k, v in part.tensors.items()}
    size = sum(math.prod(shapes[k]) for k in match.mapped)
    out = [f'{name}: {type(part.module).__name__} from {part.source}',
           f'  {len(match.mapped)} mapped ({size:,} parameters), {len(match.missing)} missing, '
           f'{len(match.unexpected)} unexpected, {len(match.misshaped)} mis-shaped']
    out += [f'  {line}' for line in match.problems()]
    width = max(map(len, match.mapped), default=0)
    return out + [f'  mapped {key:{width}}  {list(shapes[key])}' for key in match.mapped]
