"""Sample grids for the page: read, checked, cut to size, and where their rows of images are."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from gen_jax.report.read import Note, Picture, Run

__all__ = ['BUDGET', 'Strip', 'load_pictures']

BUDGET = 24 * 2**20
"""Bytes of all pictures of a page; beyond it each is cut to its first rows."""
PAD = 1  # of gen_jax.engine.images.grid


class Strip(NamedTuple):
    """A grid of images as the page holds it."""

    name: str
    """Evaluation, or 'samples'."""
    run: int
    """Index in the report."""
    seed: Any
    data: str
    """data: URI of a PNG."""
    width: int
    height: int
    rows: int
    """Of images, each height // rows pixels; 1 where the layout is not known."""
    columns: int


def load_pictures(runs: Sequence[Run], budget: int = BUDGET) -> tuple[list[Strip], list[Note]]:
    """Every picture of the runs, by name and run; what cannot be read or has to be cut becomes a note."""
    every = [(name, i, p) for i, r in enumerate(runs) for name, p in sorted(r.pictures.items())]
    strips, notes = [], []
    for name, i, picture in sorted(every, key=lambda e: (e[0], e[1])):
        try:
            strips.append(_load(name, i, picture, budget // len(every)))
        except Exception as e:  # noqa: BLE001  (whatever a broken image raises in Pillow)
            why = 'does not exist' if not picture.path.exists() else f'cannot be read ({type(e).__name__})'
            notes.append(Note(runs[i].name, f'the picture of {name} {why}: left out'))
            continue
        if strips[-1] is None:
            strips.pop()
            notes.append(Note(runs[i].name, f'the picture of {name} is too large for the page: left out'))
    return strips, notes


def _load(name: str, run: int, picture: Picture, budget: int) -> Strip | None:
    """One picture; None if even its first row is above the budget (in bytes)."""
    from PIL import Image

    raw = picture.path.read_bytes()
    with Image.open(io.BytesIO(raw), formats=['PNG']) as image:
        image.load()
        (width, height), columns = image.size, picture.columns
        pitch, odd = divmod(width - PAD, columns)
        known = pitch > 0 and not odd and (height - PAD) % pitch == 0  # square images in that many columns
        keep = rows = (height - PAD) // pitch if known else 1
        while len(raw) > budget and keep > 1:
            keep = (keep + 1) // 2
            out = io.BytesIO()
            image.crop((0, 0, width, keep * pitch + PAD)).save(out, format='PNG', optimize=True)
            raw = out.getvalue()
    if len(raw) > budget:
        return None
    height = keep * pitch + PAD if keep < rows else height
    data = 'data:image/png;base64,' + base64.b64encode(raw).decode()
    return Strip(name, run, picture.seed, data, width, height, keep, columns if known else 1)
