"""What a trained diffusion model is used for, a row each, over held-out digits.

    python -m experiments.uses_picture WORKDIR OUT.png

Rows: the digit, its reconstruction by DDIM inversion, SDEdit at strength 0.5, RePaint with the upper half kept, and
digits drawn by UniPC in 10 steps.
"""

import sys
from pathlib import Path

import numpy as np

import gen_jax
from gen_jax.engine.images import grid, save_png

USES = {'reconstruct': {'iterations': 3, 'steps': 18, 'solver': 'ddim'},
        'edit': {'strength': 0.5, 'solver': 'heun'},
        'inpaint': {'keep': 'top', 'solver': 'dpmpp_2m', 'jump_length': 3, 'jump_n_sample': 4}}


def main(workdir, out):
    run = gen_jax.load(workdir)
    made = {name: run.from_data(name, 10, **settings)['image'] for name, settings in USES.items()}
    rows = [made['reconstruct'][:, 0], *(pictures[:, 1] for pictures in made.values())]
    rows.append(run.sample(10, solver='unipc', steps=10)['image'])
    save_png(Path(out), grid(np.concatenate(rows), columns=10, scale=6))
    off = made['reconstruct'][:, 0].astype(int) - made['reconstruct'][:, 1]
    print(f'reconstruction: {np.abs(off).mean():.3g} of 255 off on average; {out}')


if __name__ == '__main__':
    main(*sys.argv[1:])
