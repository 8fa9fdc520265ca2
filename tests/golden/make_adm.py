"""Prints what the published code of ADM and iDDPM answers for small random networks, into adm.npz.

Needs torch and a folder with checkouts of both repositories, guided-diffusion and improved-diffusion (anywhere below
it): python tests/golden/make_adm.py FOLDER

Weights and inputs are not stored: they are drawn from seeds made of names, here and in the test. Every parameter is
drawn, norms, biases and the layers that start at zero included, so that nothing hides a mistake. Both codes fix the
groups of their norms at 32, hence the widths.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

SMALL = dict(num_res_blocks=1, image_size=16)
CASES = {  # the fields of our networks; `published` translates
    'adm': dict(
        **SMALL,
        model_channels=64,
        channel_mult=(0.5, 1),  # as at 512x512
        attention_resolutions=(8,),
        num_head_channels=16,
        resblock_updown=True,
        use_new_attention_order=True,
        num_classes=5,
        learn_sigma=True,
    ),
    'superres': dict(
        **SMALL,
        model_channels=32,
        channel_mult=(1, 2),
        attention_resolutions=(8,),
        num_heads=4,
        use_scale_shift_norm=False,
        conv_resample=False,
        in_channels=2,
        super_res=True,
    ),
    'iddpm': dict(
        **SMALL,
        model_channels=32,
        channel_mult=(1, 2),
        attention_resolutions=(16,),
        num_heads=4,
        num_heads_upsample=2,
        in_channels=1,
        learn_sigma=True,
    ),
    'classifier': dict(
        num_res_blocks=1,
        image_size=8,
        model_channels=32,
        channel_mult=(1, 2),
        attention_resolutions=(4,),
        num_head_channels=16,
        resblock_updown=True,
        num_classes=5,
    ),
}
for _pool in ('adaptive', 'spatial', 'spatial_v2'):
    CASES[_pool] = dict(image_size=8, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
                        num_heads=2, num_classes=5, pool=_pool)


def is_classifier(name: str) -> bool:
    return name not in ('adm', 'superres', 'iddpm')


def draw(name: str, shape) -> np.ndarray:
    """Standard normal float32, the same for the same name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)


def weight(key: str, shape) -> np.ndarray:
    """The value of the parameter called `key`, in torch's layout, of a magnitude that keeps activations of order 1."""
    x = draw(key, shape)
    if len(shape) == 1:
        return 1 + 0.3 * x if key.endswith('weight') else 0.3 * x
    if key == 'label_emb.weight':
        return x
    return x / np.float32(np.sqrt(np.prod(shape[1:]) if key.endswith('weight') else shape[0]))


def inputs(name: str) -> dict[str, np.ndarray]:
    """x [3, H, W, C] NHWC, label [3] and the conditions of a case."""
    case = CASES[name]
    sides = (8, 8) if is_classifier(name) else (12, 8)
    channels = case.get('in_channels', 3)
    given = dict(x=draw(f'{name} x', (3, *sides, channels)), label=np.array([0.0, 412.5, 999.0], np.float32))
    if 'num_classes' in case and not is_classifier(name):
        given['class_labels'] = np.array([0, 4, 2])
    if case.get('super_res'):
        given['low_res'] = draw(f'{name} low_res', (3, 4, 3, channels))
    return given


TARGETS = np.array([1, 0, 4])
"""Classes whose log p(class | x) the classifier is differentiated for."""


def published(name: str) -> dict:
    """A case in the words of the reference, which takes rates of down-sampling and counts output channels."""
    case = {'in_channels': 3, 'use_scale_shift_norm': True, **CASES[name]}
    case['attention_resolutions'] = [case['image_size'] // side for side in case['attention_resolutions']]
    if is_classifier(name):
        return {'pool': 'attention', 'out_channels': case.pop('num_classes'), **case}
    case.pop('super_res', None)
    if name == 'iddpm':  # of the first repository
        del case['image_size']
    channels = case['in_channels'] * (2 if case.pop('learn_sigma', False) else 1)
    return {**case, 'out_channels': channels}


def main(folder: str) -> None:
    import torch

    for name in ('guided_diffusion', 'improved_diffusion'):
        sys.path.insert(0, str(next(Path(folder).rglob(f'{name}/unet.py')).parents[1]))
    from guided_diffusion.unet import EncoderUNetModel, SuperResModel, UNetModel
    from improved_diffusion.unet import UNetModel as OldUNetModel

    out = {}
    for name in CASES:
        make = {'adm': UNetModel, 'superres': SuperResModel, 'iddpm': OldUNetModel}.get(name, EncoderUNetModel)
        network = make(**published(name)).eval()
        shapes = {k: list(v.shape) for k, v in network.state_dict().items()}
        network.load_state_dict({k: torch.from_numpy(np.asarray(weight(k, s))) for k, s in shapes.items()})
        given = {k: torch.from_numpy(v) for k, v in inputs(name).items()}
        given = {k: v.permute(0, 3, 1, 2) if v.ndim == 4 else v for k, v in given.items()}
        x = given['x'].contiguous().requires_grad_()
        cond = {k: v for k, v in (('y', given.get('class_labels')), ('low_res', given.get('low_res'))) if v is not None}
        y = network(x, given['label'], **cond)
        if name == 'classifier':
            log_p = torch.log_softmax(y, -1)[range(3), TARGETS]
            out[f'{name}/grad'] = torch.autograd.grad(log_p.sum(), x)[0].permute(0, 2, 3, 1).contiguous().numpy()
        y = y.detach()
        out[f'{name}/y'] = (y.permute(0, 2, 3, 1) if y.ndim == 4 else y).contiguous().numpy()
        out[f'{name}/shapes'] = np.array(json.dumps(shapes))
        print(f'{name}: {len(shapes)} tensors, std {y.std():.3f}, max {y.abs().max():.3f}')
    np.savez_compressed(Path(__file__).with_name('adm.npz'), **out)


if __name__ == '__main__':
    if len(sys.argv) < 2:
        print(f'left as it is: adm.npz (usage: python {sys.argv[0]} FOLDER, with checkouts of both repositories)')
    else:
        main(sys.argv[1])
