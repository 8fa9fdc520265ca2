"""Prints what diffusers 0.42.1's UNet2DModel answers for small random networks, into unet.npz.

Needs torch and diffusers (the `reference` extra): python tests/golden/make_unet.py

Weights and inputs are not stored: they are drawn from seeds made of names, here and in the test. Every parameter is
drawn, norms and biases included, so that nothing starts at zero or one and hides a mistake.
"""

import json
import zlib
from pathlib import Path

import numpy as np

CASES = {
    'plain': dict(
        down_block_types=('DownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'UpBlock2D'),
        block_out_channels=(8, 16),
        layers_per_block=1,
        add_attention=False,
    ),
    'ddpm': dict(  # as ddpm_cifar10, narrower
        down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
        block_out_channels=(8, 16, 24),
        layers_per_block=2,
        attention_head_dim=None,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    ),
    'classes': dict(
        in_channels=1,
        out_channels=2,
        center_input_sample=True,
        down_block_types=('AttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'AttnUpBlock2D'),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=4,
        num_class_embeds=11,
        time_embedding_dim=20,
    ),
    'resnet_resampling': dict(
        down_block_types=('ResnetDownsampleBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('ResnetUpsampleBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
        block_out_channels=(8, 12, 16),
        layers_per_block=1,
        attention_head_dim=4,
        downsample_type='resnet',
        upsample_type='resnet',
        resnet_time_scale_shift='scale_shift',
    ),
    'scale_shift': dict(
        down_block_types=('AttnDownBlock2D', 'ResnetDownsampleBlock2D'),
        up_block_types=('ResnetUpsampleBlock2D', 'AttnUpBlock2D'),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        resnet_time_scale_shift='scale_shift',
        attn_norm_num_groups=2,
        mid_block_scale_factor=1.5,
        act_fn='mish',
        num_class_embeds=3,
        downsample_padding=0,
    ),
    'fourier': dict(
        time_embedding_type='fourier',
        down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
        up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
        block_out_channels=(8, 8),
        layers_per_block=1,
        class_embed_type='timestep',
        act_fn='gelu',
    ),
    'learned_identity': dict(
        time_embedding_type='learned',
        num_train_timesteps=7,
        down_block_types=('DownBlock2D', 'ResnetDownsampleBlock2D'),
        up_block_types=('UpBlock2D', 'ResnetUpsampleBlock2D'),
        block_out_channels=(8, 16),
        layers_per_block=2,
        mid_block_type=None,
        class_embed_type='identity',
        act_fn='relu',
    ),
}
COMMON = dict(norm_num_groups=4)


def draw(name: str, shape) -> np.ndarray:
    """Standard normal float32, the same for the same name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)


def weight(key: str, shape) -> np.ndarray:
    """The value of the parameter called `key`, in torch's layout, of a magnitude that keeps activations of order 1."""
    x = draw(key, shape)
    if len(shape) > 1 and 'class_embedding.weight' not in key and 'time_proj' not in key:
        return x / np.float32(np.sqrt(np.prod(shape[1:])))
    return 1 + 0.3 * x if 'norm' in key and key.endswith('weight') else (x if len(shape) > 1 else 0.3 * x)


def inputs(name: str) -> dict[str, np.ndarray]:
    """x [3, 12, 8, C] NHWC, t [3] and class_labels (None if there are none) of a case."""
    case = CASES[name]
    t = np.array([0, 412, 999])
    if case.get('time_embedding_type') == 'fourier':
        t = np.array([0.05, 1.3, 20.0], np.float32)
    elif case.get('time_embedding_type') == 'learned':
        t = np.array([0, 3, 6])
    labels = None
    if 'num_class_embeds' in case:
        labels = np.array([0, 2, case['num_class_embeds'] - 1])
    elif case.get('class_embed_type') == 'timestep':
        labels = np.array([0.5, 3.0, 9.0], np.float32)
    elif case.get('class_embed_type') == 'identity':
        labels = draw(f'{name} labels', (3, 4 * case['block_out_channels'][0]))
    return dict(x=draw(f'{name} x', (3, 12, 8, case.get('in_channels', 3))), t=t, class_labels=labels)


def main() -> None:
    import torch
    from diffusers import UNet2DModel

    out = {}
    for name, case in CASES.items():
        unet = UNet2DModel(**COMMON, **case).eval()
        shapes = {k: list(v.shape) for k, v in unet.state_dict().items()}
        unet.load_state_dict({k: torch.from_numpy(np.asarray(weight(k, s))) for k, s in shapes.items()})
        given = {k: None if v is None else torch.from_numpy(v) for k, v in inputs(name).items()}
        with torch.no_grad():
            y = unet(given['x'].permute(0, 3, 1, 2), given['t'], given['class_labels']).sample
        out[f'{name}/y'] = y.permute(0, 2, 3, 1).contiguous().numpy()
        out[f'{name}/shapes'] = np.array(json.dumps(shapes))
        print(f'{name}: {len(shapes)} tensors, std {y.std():.3f}, max {y.abs().max():.3f}')
    np.savez_compressed(Path(__file__).with_name('unet.npz'), **out)


if __name__ == '__main__':
    main()
