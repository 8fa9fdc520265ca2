"""Prints what the published code of NCSN and NCSNv2 answers for small random networks, into ncsn.npz.

Needs torch and checkouts of both repositories, github.com/ermongroup/ncsn and ncsnv2:
python tests/golden/make_ncsn.py NCSN NCSNV2

Weights and inputs are not stored: they are drawn from seeds made of names, here and in the test. Every parameter is
drawn, norms and biases included. Pictures are not square and their resolution halves as often as the network allows,
so that no axis can be mistaken for another.
"""

import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

LEVELS, CHANNELS, SHAPE = 5, 2, (16, 24)
CASES = {  # (repository, class, ngf, whether pictures in [0, 1] are centred)
    'ncsn': ('ncsn', 'CondRefineNetDilated', 6, True),
    'ncsnv2': ('ncsnv2', 'NCSNv2', 6, True),
    'ncsnv2_deeper': ('ncsnv2', 'NCSNv2Deeper', 4, False),
    'ncsnv2_deepest': ('ncsnv2', 'NCSNv2Deepest', 4, True),
}
SIGMAS = 3.0, 0.05


def weight(key: str, shape) -> np.ndarray:
    """The value of a parameter of the reference, float32."""
    draw = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if len(shape) == 4:
        return np.float32(draw / np.sqrt(np.prod(shape[1:])))
    return np.float32(0.3 * draw + key.endswith(('alpha', 'gamma', 'embed.weight')))


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """x float32 [3, H, W, C] and the index of its sigma [3]."""
    return np.float32(np.random.RandomState(0).uniform(0, 1, (3, *SHAPE, CHANNELS))), np.array([0, LEVELS - 1, 2])


def networks(repository: str):
    """The module of that checkout which defines the networks; both call their package `models`."""
    import importlib
    import types

    for name in [n for n in sys.modules if n.split('.')[0] == 'models']:
        del sys.modules[name]
    if repository == 'ncsnv2':
        sys.path.insert(0, sys.argv[2])
        return importlib.import_module('models.ncsnv2')
    package = types.ModuleType('models')  # its __init__ loads far more than the network
    package.__path__ = [str(Path(sys.argv[1]) / 'models')]
    sys.modules['models'] = package
    return importlib.import_module('models.cond_refinenet_dilated')


def main():
    if len(sys.argv) < 3:
        return print('ncsn.npz is left as it is: give the paths of checkouts of ermongroup/ncsn and ermongroup/ncsnv2')
    import torch

    out, (x, label) = {}, inputs()
    for name, (repository, kind, ngf, centred) in CASES.items():
        config = SimpleNamespace(
            device='cpu',
            data=SimpleNamespace(image_size=32, channels=CHANNELS, logit_transform=not centred, rescaled=False),
            model=SimpleNamespace(ngf=ngf, num_classes=LEVELS, normalization='InstanceNorm++', nonlinearity='elu',
                                  sigma_dist='geometric', sigma_begin=SIGMAS[0], sigma_end=SIGMAS[1], spec_norm=False))
        network = getattr(networks(repository), kind)(config).eval()
        state = {k: torch.from_numpy(weight(k, v.shape)) for k, v in network.named_parameters()}
        missing, unexpected = network.load_state_dict(state, strict=False)
        assert set(missing) <= {'sigmas'} and not unexpected
        with torch.no_grad():
            y = network(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(label))
        out[name] = y.numpy().transpose(0, 2, 3, 1)
        out[f'{name}/keys'] = np.array(sorted(state))
        print(name, out[name].std((1, 2, 3)))
    np.savez_compressed(Path(__file__).parent / 'ncsn.npz', **out)


if __name__ == '__main__':
    main()
