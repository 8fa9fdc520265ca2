"""Prints what torch computes for small DCGANs with known random weights: tests/golden/dcgan.npz.

Needs torch: `python tests/golden/make_dcgan.py`. Weights are not stored: `weight(key, shape)` makes them again from the
key's name, batch-norm statistics included, so that no initial 0 or 1 can hide a mistake.
"""

import zlib
from pathlib import Path

import numpy as np

SIZE, WIDTH, CHANNELS, LATENT = 16, 3, 2, 5
PUBLISHED = dict(size=64, width=64, channels=3, latent=100)


def weight(key: str, shape) -> np.ndarray:
    """The value of a parameter or statistic of the reference, float32."""
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith('running_var'):
        return np.float32(np.exp(0.5 * draw))
    return np.float32(0.3 * draw + (len(shape) == 1 and key.endswith('weight')))


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """z float32 [4, LATENT]; image float32 [4, SIZE, SIZE, CHANNELS]."""
    rng = np.random.RandomState(0)
    return np.float32(rng.standard_normal((4, LATENT))), np.float32(rng.uniform(-1, 1, (4, SIZE, SIZE, CHANNELS)))


def reference(size, width, channels, latent):
    """(generator, discriminator): sequences under the names `main.N` of the published 64x64 networks."""
    from torch import nn

    n = size.bit_length() - 3
    features = width * 2 ** (n - 1)
    layers = [nn.ConvTranspose2d(latent, features, 4, 1, 0, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
    for _ in range(n - 1):
        layers += [nn.ConvTranspose2d(features, features // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(features // 2),
                   nn.ReLU()]
        features //= 2
    layers += [nn.ConvTranspose2d(features, channels, 4, 2, 1, bias=False), nn.Tanh()]
    generator = nn.ModuleDict({'main': nn.Sequential(*layers)})
    layers = [nn.Conv2d(channels, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
    for i in range(1, n):
        layers += [nn.Conv2d(width * 2 ** (i - 1), width * 2 ** i, 4, 2, 1, bias=False), nn.BatchNorm2d(width * 2 ** i),
                   nn.LeakyReLU(0.2)]
    layers += [nn.Conv2d(width * 2 ** (n - 1), 1, 4, 1, 0, bias=False)]
    return generator, nn.ModuleDict({'main': nn.Sequential(*layers)})


def main():
    import torch

    z, image = inputs()
    feeds = torch.from_numpy(z)[:, :, None, None], torch.from_numpy(image.transpose(0, 3, 1, 2))
    out = {}
    networks = reference(SIZE, WIDTH, CHANNELS, LATENT)
    for name, network, x in zip(('generator', 'discriminator'), networks, feeds, strict=True):
        state = {k: torch.from_numpy(weight(k, v.shape)) for k, v in network.state_dict().items()
                 if 'num_batches' not in k}
        out[f'{name}/keys'] = np.array(sorted(state))
        for mode in ('eval', 'train'):
            network.load_state_dict(state, strict=False)
            network.train(mode == 'train')
            with torch.no_grad():
                y = network['main'](x).numpy()
            out[f'{name}/{mode}'] = y.transpose(0, 2, 3, 1)
        after = network.state_dict()  # the running means of one training step (the variances differ by B/(B-1))
        for k, v in after.items():
            if k.endswith('running_mean'):
                out[f'{name}/after/{k}'] = v.numpy()
    for name, network in zip(('generator', 'discriminator'), reference(**PUBLISHED), strict=True):
        out[f'{name}/published'] = np.array(sorted(f'{k} {tuple(v.shape)}' for k, v in network.named_parameters()))
        print(name, sum(v.numel() for v in network.parameters()))
    np.savez_compressed(Path(__file__).parent / 'dcgan.npz', **out)


if __name__ == '__main__':
    main()
