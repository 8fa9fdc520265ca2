"""Ten digits of each trained run, by its own sampler: a row each, in the order given.

    python -m experiments.methods_picture OUT.png WORKDIR [WORKDIR ...]

Class-conditional models draw 0 to 9; the others draw what they like.
"""

import sys
from pathlib import Path

import numpy as np

import gen_jax
from gen_jax.engine.images import grid, save_png


def main(out, *workdirs):
    rows = [gen_jax.load(workdir).sample(10)['image'] for workdir in workdirs]
    save_png(Path(out), grid(np.concatenate(rows), columns=10, scale=6))


if __name__ == '__main__':
    main(*sys.argv[1:])
