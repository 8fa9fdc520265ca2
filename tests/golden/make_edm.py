"""Prints what the networks of github.com/NVlabs/edm answer for small random instances, into edm.npz.

Needs torch and a checkout: `python -m tests.golden.make_edm PATH`. Weights and inputs are drawn from names, see
`draws`.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.golden.draws import draw, weight

SMALL = dict(img_resolution=8, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4])
CASES = {
    'ddpmpp': ('SongUNet', dict(**SMALL, label_dim=3, augment_dim=5)),
    'ncsnpp': ('SongUNet', dict(
        SMALL, channel_mult=[1, 2, 3], embedding_type='fourier', channel_mult_noise=2,
        encoder_type='residual', resample_filter=[1, 3, 3, 1])),
    'skips': ('SongUNet', dict(
        **SMALL, encoder_type='skip', decoder_type='skip', resample_filter=[1, 3, 3, 1], out_channels=2,
        augment_dim=5)),
    'residual_means': ('SongUNet', dict(**SMALL, encoder_type='residual', label_dim=3, in_channels=1, out_channels=1)),
    'adm': ('DhariwalUNet', dict(SMALL, model_channels=64, channel_mult=[2, 1], label_dim=3, augment_dim=5)),
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """x [3, 12, 8, C] NHWC, label [3], and the conditions of a case."""
    case = CASES[name][1]
    given = dict(x=draw(f'{name} x', (3, 12, 8, case.get('in_channels', 3))), label=np.float32([-1.2, 0.1, 1.1]))
    if 'label_dim' in case:
        given['class_labels'] = np.abs(draw(f'{name} labels', (3, 3)))
    if 'augment_dim' in case and name != 'skips':
        given['augment_labels'] = draw(f'{name} augment', (3, 5))
    return given


def main() -> None:
    if len(sys.argv) < 2:
        return print('edm.npz is left as it is: give the path of a checkout of github.com/NVlabs/edm')
    import torch

    sys.path.insert(0, sys.argv[1])
    from training import networks

    out = {}
    for name, (kind, case) in CASES.items():
        unet = getattr(networks, kind)(**{'in_channels': 3, 'out_channels': 3, **case}).eval()
        state = unet.state_dict()
        shapes = {k: list(v.shape) for k, v in state.items() if not k.endswith('resample_filter')}
        state.update({k: torch.from_numpy(weight(k, s)) for k, s in shapes.items()})
        unet.load_state_dict(state)
        given = {k: torch.from_numpy(v) for k, v in inputs(name).items()}
        with torch.no_grad():
            y = unet(given['x'].permute(0, 3, 1, 2), given['label'], given.get('class_labels'),
                     given.get('augment_labels'))
        out[f'{name}/y'] = y.permute(0, 2, 3, 1).contiguous().numpy()
        out[f'{name}/shapes'] = np.array(json.dumps(shapes))
        print(f'{name}: {len(shapes)} tensors, std {y.std():.3f}, max {y.abs().max():.3f}')
    np.savez_compressed(Path(__file__).with_name('edm.npz'), **out)


if __name__ == '__main__':
    main()
