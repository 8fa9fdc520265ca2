"""Prints what github.com/yang-song/score_sde_pytorch answers for small random networks, into score_sde.npz.

Needs torch and a checkout: `python -m tests.golden.make_score_sde PATH`. Weights and inputs are drawn from names, see
`draws`. Its CUDA extensions are not built: images on the CPU take another path.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tests.golden.draws import draw, weight

DATA = dict(image_size=8, num_channels=3, centered=True)
MODEL = dict(
    name='ncsnpp', nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dropout=0.1, resamp_with_conv=True,
    conditional=True, fir=False, fir_kernel=[1, 3, 3, 1], skip_rescale=True, resblock_type='biggan', init_scale=0.0,
    progressive='none', progressive_input='none', progressive_combine='sum', embedding_type='positional',
    fourier_scale=16, scale_by_sigma=False, sigma_min=0.01, sigma_max=50, num_scales=10, nonlinearity='swish',
)
CASES = {  # what differs from the settings above
    'ddpmpp': {},
    'ncsnpp_ve': dict(
        num_res_blocks=2, fir=True, progressive_input='residual', embedding_type='fourier',
        scale_by_sigma=True, centered=False),
    'ncsnpp_pyramids': dict(
        ch_mult=(1, 2, 2), fir=True, progressive_input='input_skip', progressive='output_skip',
        embedding_type='fourier', scale_by_sigma=True, centered=False),
    'ncsnpp_table': dict(fir=True, progressive_input='residual', scale_by_sigma=True, centered=False),
    'ddpm': dict(name='ddpm', nf=32, scale_by_sigma=True, skip_rescale=False, num_channels=1),
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """x [3, 12, 8, C] NHWC and label [3] of a case."""
    case = {**DATA, **MODEL, **CASES[name]}
    label = np.float32([0.0, 412.3, 999.0])
    if case['embedding_type'] == 'fourier':
        label = np.float32([0.05, 1.3, 20.0])
    elif case['scale_by_sigma']:
        label = np.array([9, 4, 0])
    return dict(x=draw(f'{name} x', (3, 12, 8, case['num_channels'])), label=label)


def main() -> None:
    if len(sys.argv) < 2:
        return print('score_sde.npz is left as it is: give the path of a checkout of yang-song/score_sde_pytorch')
    import torch
    import torch.utils.cpp_extension

    torch.utils.cpp_extension.load = lambda *args, **kwargs: None
    sys.path.insert(0, sys.argv[1])
    from models import ddpm, ncsnpp

    out = {}
    for name, differs in CASES.items():
        case = {**DATA, **MODEL, **differs}
        config = SimpleNamespace(
            data=SimpleNamespace(**case), model=SimpleNamespace(**case), training=SimpleNamespace(continuous=True))
        unet = {'ncsnpp': ncsnpp.NCSNpp, 'ddpm': ddpm.DDPM}[case['name']](config).eval()
        shapes = {k: list(v.shape) for k, v in unet.state_dict().items() if k != 'sigmas'}
        drawn = {k: torch.from_numpy(weight(k, s)) for k, s in shapes.items()}
        unet.load_state_dict({'sigmas': unet.sigmas, **drawn})
        x, label = (torch.from_numpy(v) for v in inputs(name).values())
        if case['embedding_type'] == 'positional' and not case['scale_by_sigma']:
            unet.sigmas = torch.ones(1000)  # read, though not used, at indices beyond its end
        with torch.no_grad():
            y = unet(x.permute(0, 3, 1, 2), label)
        out[f'{name}/y'] = y.permute(0, 2, 3, 1).contiguous().numpy().astype(np.float32)
        out[f'{name}/shapes'] = np.array(json.dumps(shapes))
        print(f'{name}: {len(shapes)} tensors, std {y.std():.3f}, max {y.abs().max():.3f}')
    np.savez_compressed(Path(__file__).with_name('score_sde.npz'), **out)


if __name__ == '__main__':
    main()
