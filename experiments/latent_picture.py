"""The curve over guidance scale of a latent diffusion run, and what it draws for some prompts.

    python -m experiments.latent_picture runs/latent_diffusion/ldm docs/images

Reads WORKDIR/scores.json (experiments/latent_diffusion.sh, or `gen-jax evaluate --out`), writes latent_guidance.png and
latent_prompts.png.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import gen_jax
from experiments.study import figure
from gen_jax.data.shapes_oracle import matches, read_scene
from gen_jax.engine.files import replacing

KINDS = {'one': 'one object', 'two': 'two objects and their relation', 'heldout': 'an unseen pair of shape and colour'}
PROMPTS = ('a small red circle', 'a large green star', 'a large purple triangle', 'a small cyan square',
           'a small red circle left of a large blue star', 'a large yellow square above a small pink triangle')


def curves(scores) -> dict[str, list[tuple[float, float, float]]]:
    """Kind -> (guidance scale, share right, binomial standard error), by scale."""
    found = {}
    for name, entry in scores.items():
        kind, _, scale = name.partition('_')
        if kind in KINDS and isinstance(entry, dict):
            found.setdefault(kind, []).append((float(scale.replace('_', '.')), entry['scene'], entry['scene_stderr']))
    return {k: sorted(found[k]) for k in KINDS if k in found}


def plot(scores):
    def draw(axes):
        for kind, points in curves(scores).items():
            x, y, error = zip(*points, strict=True)
            axes.errorbar(x, [100 * v for v in y], [196 * v for v in error], label=KINDS[kind], marker='o',
                          markersize=3, linewidth=1.2, capsize=2)
        axes.set_xlabel('guidance scale')
        axes.set_ylabel('read right by the oracle, %')
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return draw


def prompts(run, scale: float, out: Path, columns: int = 8, size: int = 64) -> None:
    """A row of pictures for each prompt; what the oracle does not read as asked has a red rim."""
    canvas = Image.new('RGB', (columns * (size + 6), len(PROMPTS) * (size + 22)), 'white')
    pen = ImageDraw.Draw(canvas)
    for row, prompt in enumerate(PROMPTS):
        images = run.sample(columns, prompt=prompt, guidance_scale=scale)['image']
        top = row * (size + 22)
        pen.text((4, top + 2), prompt, fill='black')
        for i, image in enumerate(np.asarray(images)):
            left = i * (size + 6) + 3
            if not matches(read_scene(image), prompt):
                pen.rectangle((left - 3, top + 13, left + size + 2, top + 18 + size), fill='red')
            canvas.paste(Image.fromarray(image).resize((size, size), Image.NEAREST), (left, top + 16))
    with replacing(out) as temporary:
        canvas.save(temporary, format='PNG')


def main(workdir, out) -> None:
    scores, out = json.loads((Path(workdir) / 'scores.json').read_text()), Path(out)
    figure(out / 'latent_guidance.png', plot(scores))
    best = max(curves(scores)['one'], key=lambda point: point[1])[0]
    prompts(gen_jax.load(workdir), best, out / 'latent_prompts.png')
    for kind, points in curves(scores).items():
        print(kind, ', '.join(f'{scale:g}: {100 * share:.1f} %' for scale, share, _ in points))


if __name__ == '__main__':
    main(*sys.argv[1:3])
