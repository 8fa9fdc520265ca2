"""Draws unseen scenes with the caption that a trained CLIP ranks first, wrong ones marked.

    python experiments/clip_picture.py runs/clip clip.png
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

import gen_jax
from gen_jax.build import make_evaluator
from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_captions import class_captions
from gen_jax.engine.files import replacing


def main(workdir, out, columns=6, scale=4):
    """A row each of the test split and of the combinations that no caption named."""
    run = gen_jax.load(workdir)
    captions = class_captions()
    canvas = Image.new('RGB', (columns * (32 * scale + 12), 4 * (32 * scale + 26)), 'white')
    draw = ImageDraw.Draw(canvas)
    for block, split in enumerate(('test', 'heldout')):
        source = shapes(split, max_objects=1)
        images = np.stack([source[i]['image'] for i in range(2 * columns)])
        labels = [int(source[i]['label']) for i in range(2 * columns)]
        evaluator = make_evaluator(run.config, run.predictor.system, 'zero_shot', run.config.evaluate['zero_shot'])
        logits = run.predict('zero_shot', {'image': images}, **evaluator.settings)['logits']
        for i, best in enumerate(np.argmax(logits, 1)):
            x, y = i % columns * (32 * scale + 12) + 6, (2 * block + i // columns) * (32 * scale + 26) + 4
            canvas.paste(Image.fromarray(images[i]).resize((32 * scale, 32 * scale), Image.NEAREST), (x, y))
            right = int(best) == labels[i]
            draw.text((x, y + 32 * scale + 4), captions[best] + ('' if right else '  (wrong)'),
                      fill='black' if right else 'red')
    with replacing(out) as temporary:
        canvas.save(temporary, format='PNG')


if __name__ == '__main__':
    main(*sys.argv[1:3])
