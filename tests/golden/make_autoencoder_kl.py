"""Prints what diffusers 0.42.1's AutoencoderKL answers for small random networks, into autoencoder_kl.npz.

Needs torch and diffusers (the `reference` extra): PYTHONPATH=. python tests/golden/make_autoencoder_kl.py

Weights and inputs are drawn from seeds made of names (`draws.py`), here and in the test; the results of every block
are recorded (for the first image) besides the moments and the image.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np

from tests.golden.draws import draw, weight

CASES = {
    'f4': dict(
        down_block_types=('DownEncoderBlock2D',) * 3,
        up_block_types=('UpDecoderBlock2D',) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
    ),
    'bare': dict(  # no convolutions around the latent and no attention, as newer pipelines have it
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=6,
        sample_size=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        act_fn='gelu',
    ),
    'attention': dict(
        in_channels=1,
        out_channels=2,
        down_block_types=('DownEncoderBlock2D', 'AttnDownEncoderBlock2D'),
        up_block_types=('AttnUpDecoderBlock2D', 'UpDecoderBlock2D'),
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=3,
    ),
}
COMMON = dict(norm_num_groups=4)
TILED = 'bare'
"""The case that is tiled: tiles of 8 pixels or 4 latents, a quarter shared."""
PHOTOGRAPHED = 'f4'
"""The case that sees photographs."""
PICKED = {'mean': np.s_[:, ::4, ::4], 'y': np.s_[:, 3::8, 5::8]}
"""What is kept of photographs' latents and of their reconstructions: 128 and 384 numbers."""


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Image [2, 24, 16, C] and latent [2, 24 / f, 16 / f, C] of a case, NHWC."""
    case = CASES[name]
    factor = 2 ** (len(case['block_out_channels']) - 1)
    latent = (2, 24 // factor, 16 // factor, case.get('latent_channels', 4))
    return draw(f'{name} image', (2, 24, 16, case.get('in_channels', 3))), draw(f'{name} z', latent)


def tiled_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Image [1, 20, 12, 3] and latent [1, 3, 10, 6]: whole tiles, and tiles cut at one or both ends."""
    return draw('tiled image', (1, 20, 12, 3)), draw('tiled z', (1, 3, 10, 6))


def photographs() -> np.ndarray:
    """uint8 [2, 64, 64, 3], crops of the photographs that scikit-learn ships: roofs before the sky, and petals."""
    from sklearn.datasets import load_sample_images

    corners = {'china.jpg': (100, 300), 'flower.jpg': (180, 280)}
    found = {Path(name).name: image for name, image in zip(*map(load_sample_images().get, ('filenames', 'images')),
                                                           strict=True)}
    return np.stack([found[name][y:y + 64, x:x + 64] for name, (y, x) in corners.items()])


def main() -> None:
    import torch
    from diffusers import AutoencoderKL

    def nchw(x):
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    def nhwc(x):
        return x.permute(0, 2, 3, 1).contiguous().numpy()

    def record(key, module, args, y):
        out[key] = nhwc(y[0] if isinstance(y, tuple) else y)[:1]

    out = {}
    for name, case in CASES.items():
        vae = AutoencoderKL(**COMMON, **case).eval()
        shapes = {k: list(v.shape) for k, v in vae.state_dict().items()}
        vae.load_state_dict({k: torch.from_numpy(np.asarray(weight(k, s))) for k, s in shapes.items()})
        image, z = (nchw(x) for x in inputs(name))

        hooks = [module.register_forward_hook(partial(record, f'{name}/{path}')) for path, module in vae.named_modules()
                 if path.count('.') == 2 and 'blocks' in path or path.endswith('mid_block')]
        with torch.no_grad():
            posterior, y = vae.encode(image).latent_dist, vae.decode(z).sample
        for hook in hooks:
            hook.remove()
        out[f'{name}/mean'], out[f'{name}/log_var'] = nhwc(posterior.mean), nhwc(posterior.logvar)
        out[f'{name}/y'] = nhwc(y)
        out[f'{name}/shapes'] = np.array(json.dumps(shapes))
        print(f'{name}: {len(shapes)} tensors, mean std {posterior.mean.std():.3f}, image std {y.std():.3f}')
        if name == PHOTOGRAPHED:
            with torch.no_grad():
                mean = vae.encode(nchw(photographs() / np.float32(127.5) - 1)).latent_dist.mode()
                y = vae.decode(mean).sample
            out['photographs/mean'], out['photographs/y'] = nhwc(mean)[PICKED['mean']], nhwc(y)[PICKED['y']]
            out['photographs/sum'] = photographs().sum((1, 2), dtype=np.int64)
            print(f'photographs: mean std {mean.std():.3f}, image std {y.std():.3f}, {photographs().mean((1, 2))}')
        if name == TILED:
            image, z = (nchw(x) for x in tiled_inputs())
            with torch.no_grad():
                whole = vae.encode(image).latent_dist.mean, vae.decode(z).sample
                vae.enable_tiling()
                posterior, y = vae.encode(image).latent_dist, vae.decode(z).sample
            out['tiled/mean'], out['tiled/log_var'] = nhwc(posterior.mean), nhwc(posterior.logvar)
            out['tiled/y'] = nhwc(y)
            moved = [(a - b).abs().max().item() for a, b in zip(whole, (posterior.mean, y), strict=True)]
            print(f'tiled: moves the mean by up to {moved[0]:.3f}, the image by {moved[1]:.3f}')
    np.savez_compressed(Path(__file__).with_name('autoencoder_kl.npz'), **out)


if __name__ == '__main__':
    main()
