"""Data sources by name.

A source has `__len__`; `__getitem__(i) -> dict` (image uint8 [H, W, C]; label np.int32; caption str; ...), a pure
function of i that raises `CorruptItem` where i cannot be decoded; `fingerprint`, a JSON-able dict that tells two data
sets or two settings apart; and `info`, a dict with `image_shape` ((H, W, C), or None where sizes differ),
`num_classes`, `label_names` and `channels`.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ['Source', 'open_source']


class Source(Protocol):
    """What the pipeline reads."""

    fingerprint: dict[str, Any]
    info: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def _opener(kind: str) -> Callable[..., Source]:
    # Imported when asked for: scikit-learn, Pillow and TFDS are slow to load.
    if kind == 'digits':
        from gen_jax.data.digits import digits
        return digits
    if kind == 'shapes':
        from gen_jax.data.shapes import shapes
        return shapes
    if kind == 'cached':
        from gen_jax.data.cached import cached
        return cached
    if kind == 'folder':
        from gen_jax.data.folder import folder
        return folder
    from gen_jax.data.tfds_source import tfds_source
    return tfds_source


def open_source(name: str, split: str = 'train', **options) -> Source:
    """Opens 'digits', 'shapes', 'folder:PATH', 'tfds:NAME[/CONFIG][:VERSION]' or 'cached:PATH'.

    Args:
        name: which data.
        split: 'train', 'test' ...; a source lists its own in the error for an unknown one.
        **options: keywords of that source (image_size, channels, ...).

    Raises:
        ValueError: unknown name or option, with the choices; whatever the source itself refuses.
    """
    kind, _, rest = name.partition(':')
    needs_rest = kind in ('folder', 'tfds', 'cached')
    if not needs_rest and kind not in ('digits', 'shapes') or needs_rest != bool(rest):
        raise ValueError(f"unknown data source {name!r}; the choices are 'digits', 'shapes', 'folder:PATH', "
                         f"'tfds:NAME' and 'cached:PATH' (such as 'folder:photos' or 'tfds:cifar10')")
    opener = _opener(kind)
    arguments = (rest, split) if needs_rest else (split,)
    known = list(inspect.signature(opener).parameters)[len(arguments):]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f'data source {kind!r} has no option {unknown[0]!r}; its options are {known}')
    return opener(*arguments, **options)
