"""Photographs through Stable Diffusion's autoencoder at 512x512: what XLA plans to need, and what the process takes.

    python -m experiments.photographs --pictures /tmp/photographs

The two photographs that scikit-learn ships (their centres, enlarged to 512x512) go through image-to-image (strength
0.5, 2 of 4 steps) and inpainting (4 steps, a round mask) of a pipeline with the autoencoder of Stable Diffusion 1.x
(83,653,863 random parameters) and a small random UNet, whole and in tiles of 256 pixels. Each drawing is a process of
its own. The random networks make no pictures worth a look; --pictures writes them all the same.

Per row: the temporary memory of the one program from pixels to pixels, as XLA plans it; the largest resident set of the
process, and what of it was there before (Python, JAX and the weights); minutes, compilation included.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

USES = {'image_to_image': 'china', 'inpaint': 'flower'}
MIB = 2**20


def photograph(name, side):
    """uint8 [side, side, 3]: the centre of one of the photographs."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image
    image = Image.fromarray(load_sample_image(f'{name}.jpg'))
    left = (image.width - image.height) // 2
    centre = image.crop((left, 0, left + image.height, image.height))
    return np.asarray(centre.resize((side, side), Image.Resampling.LANCZOS))


def disc(side):
    """uint8 [side, side]: 255 within a circle, which is painted."""
    import numpy as np
    y, x = np.mgrid[:side, :side] - side / 2
    return np.where(x**2 + y**2 < (side / 4)**2, 255, 0).astype(np.uint8)


def pipeline(folder, tile):
    """(the pipeline, what XLA plans for the programs that it then compiles)."""
    from gen_jax.models import UNet2DCondition, sd_vae
    from gen_jax.pipelines import load_pipeline, make_pipeline, program
    from tests.pipelines.folders import drawn, write
    tiny = load_pipeline(write('sd1', Path(folder)))  # whose text encoder serves
    blocks = 'DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'
    unet = UNet2DCondition(
        block_out_channels=(32, 64, 64, 64), down_block_types=blocks, norm_num_groups=8, layers_per_block=1,
        up_block_types=tuple(kind.replace('Down', 'Up') for kind in blocks), cross_attention_dim=12, sample_size=64)
    parts = {'unet': unet, 'vae': sd_vae(sample_size=tile)}
    compiled, planned = program.compiled, {}

    def watched(networks):
        jitted = compiled(networks)

        def run(static, variables, inputs):
            made = jitted.lower(static, variables, inputs).compile()
            planned['temporary'] = made.memory_analysis().temp_size_in_bytes
            return made(variables, inputs)

        return run

    program.compiled = watched
    variables = {**tiny.variables, **{part: drawn(part, module) for part, module in parts.items()}}
    return make_pipeline(tiny.networks._replace(**parts), variables, tiny.scheduler, tiny.index), planned


def resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def draw(use, tiling, side, tile, out):
    """One drawing; prints its row as JSON."""
    import jax
    import numpy as np
    from PIL import Image
    jax.config.update('jax_platforms', 'cpu')
    with tempfile.TemporaryDirectory() as folder:
        side = int(side)
        pipe, planned = pipeline(folder, int(tile))
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(pipe.variables))
        image = photograph(USES[use], side)
        given = dict(image=image, scheduler='DDIMScheduler', steps=4, max_steps=4, guidance_scale=3.0,
                     tiling=tiling == 'tiled')
        given |= dict(strength=0.5) if use == 'image_to_image' else dict(mask=disc(side))
        before, began = resident(), time.perf_counter()
        pixels = np.asarray(getattr(pipe, use)(pipe.variables, 'a photograph', **given))[0]
    assert pixels.shape == (side, side, 3) and pixels.dtype == np.uint8 and pixels.std((0, 1)).min() > 1
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([image, pixels], 1)).save(Path(out) / f'{use}_{tiling}.png')
    print(json.dumps({'use': use, 'way': tiling, 'seconds': time.perf_counter() - began, 'peak': resident(),
                      'before': before, 'weights': weights, 'jax': jax.__version__, **planned}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', default='', help='a folder for photograph and result, side by side')
    parser.add_argument('--only', nargs=2, metavar=('USE', 'WAY'), help="one row: 'inpaint' 'tiled'")
    parser.add_argument('--side', type=int, default=512)
    parser.add_argument('--tile', type=int, default=256)
    args = parser.parse_args()
    print(f'| use | autoencoder | planned temporary MiB | largest resident set, MiB | before the call | minutes |\n'
          f'|{"---|" * 6}')
    for use, way in [args.only] if args.only else [(use, way) for use in USES for way in ('whole', 'tiled')]:
        code = 'import sys; from experiments.photographs import draw; draw(*sys.argv[1:])'
        given = use, way, str(args.side), str(args.tile), args.pictures
        out = subprocess.run([sys.executable, '-c', code, *given], check=True, text=True, stdout=subprocess.PIPE).stdout
        row = json.loads(out.splitlines()[-1])
        numbers = (f'{row[k] / MIB:,.0f}' for k in ('temporary', 'peak', 'before'))
        print(f'| {use} | {way} | {" | ".join(numbers)} | {row["seconds"] / 60:.1f} |', flush=True)
    print(f'\nPython {platform.python_version()}, jax {row["jax"]}, {os.cpu_count()} CPU cores, '
          f'{row["weights"] / MIB:,.0f} MiB of weights')


if __name__ == '__main__':
    main()
