"""Prints what diffusers 0.42.1's UNet2DConditionModel answers for small random networks, into unet_condition.npz.

Needs torch and diffusers (the `reference` extra): PYTHONPATH=. python tests/golden/make_unet_condition.py

Weights and inputs are not stored: they are drawn from seeds made of names, here and in the test.
"""

import json
from pathlib import Path

import numpy as np

from tests.golden.draws import draw, weight

CROSS_DOWN = dict(
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))
DOWN_CROSS = dict(
    down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'))
CASES = {
    'sd1': dict(**CROSS_DOWN, in_channels=9, cross_attention_dim=12, attention_head_dim=2),  # with a mask of the text
    'sd2': dict(  # told an image, too
        **CROSS_DOWN, cross_attention_dim=12, attention_head_dim=(1, 4), use_linear_projection=True,
        upcast_attention=True, class_embed_type='projection', projection_class_embeddings_input_dim=6),
    'sdxl': dict(
        **DOWN_CROSS, cross_attention_dim=20, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
        use_linear_projection=True, addition_embed_type='text_time', addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=10 + 6 * 6),
    'refiner': dict(
        block_out_channels=(8, 16, 16), down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'), cross_attention_dim=10,
        attention_head_dim=(1, 2, 4), use_linear_projection=True, addition_embed_type='text_time',
        addition_time_embed_dim=6, projection_class_embeddings_input_dim=10 + 5 * 6),
    'upscaler': dict(
        block_out_channels=(8,), down_block_types=('CrossAttnDownBlock2D',), up_block_types=('UpBlock2D',),
        in_channels=7, only_cross_attention=True, cross_attention_dim=12, attention_head_dim=4,
        use_linear_projection=True, num_class_embeds=9),
    'rest': dict(  # what else the fields can say
        down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
        in_channels=5, out_channels=3, cross_attention_dim=(12, 12), attention_head_dim=2, layers_per_block=(1, 2),
        only_cross_attention=(False, True), resnet_time_scale_shift='scale_shift', mid_block_scale_factor=1.5,
        time_cond_proj_dim=6, class_embed_type='timestep', act_fn='gelu', center_input_sample=True,
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, time_embedding_dim=20, norm_eps=1e-3),
    'odd': dict(  # sides that three resolutions do not divide: 9, 5, 3 and 13, 7, 4
        block_out_channels=(4, 8, 8), down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'UpBlock2D', 'CrossAttnUpBlock2D'), cross_attention_dim=12, attention_head_dim=2),
    'odd_asymmetric': dict(  # 7, 3, 1 and 5, 2, 1
        block_out_channels=(4, 4, 8), down_block_types=('DownBlock2D',) * 3, up_block_types=('UpBlock2D',) * 3,
        cross_attention_dim=12, attention_head_dim=2, downsample_padding=0),
}
COMMON = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
BATCH, LENGTH = 2, 5
SIZES = {'odd': (9, 13), 'odd_asymmetric': (7, 5)}
"""Height and width of a case's x where they are not 12 and 8."""


def settings(name: str) -> dict:
    """Fields of a case's network."""
    return {**COMMON, **CASES[name]}


def inputs(name: str) -> dict:
    """Arguments of a case's network: x [2, H, W, C] NHWC, t [2], encoder_hidden_states [2, 5, D], and what it asks for
    besides."""
    case = settings(name)
    dim = case['cross_attention_dim']
    given = dict(
        x=draw(f'{name} x', (BATCH, *SIZES.get(name, (12, 8)), case.get('in_channels', 4))),
        t=np.array([999, 412]),
        encoder_hidden_states=draw(f'{name} text', (BATCH, LENGTH, dim if isinstance(dim, int) else dim[0])),
    )
    if 'addition_embed_type' in case:
        numbers = np.array([[1024, 768, 0, 16, 1024, 512], [512, 600, 3, 0, 1000, 1016]], np.float32)
        count = (case['projection_class_embeddings_input_dim'] - 10) // case['addition_time_embed_dim']
        given['added_cond'] = {'text_embeds': draw(f'{name} pooled', (BATCH, 10)), 'time_ids': numbers[:, :count]}
    if 'num_class_embeds' in case:
        given['class_labels'] = np.array([8, 3])
    elif case.get('class_embed_type') == 'projection':
        given['class_labels'] = draw(f'{name} labels', (BATCH, case['projection_class_embeddings_input_dim']))
    elif case.get('class_embed_type') == 'timestep':
        given['class_labels'] = np.array([20.0, 350.0], np.float32)
    if 'time_cond_proj_dim' in case:
        given['timestep_cond'] = draw(f'{name} guidance', (BATCH, case['time_cond_proj_dim']))
    if name == 'sd1':
        given['encoder_attention_mask'] = np.array([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]], bool)
    return given


def main() -> None:
    import torch
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(1)
    out = {}
    for name in CASES:
        unet = UNet2DConditionModel(**settings(name)).eval()
        shapes = {k: list(v.shape) for k, v in unet.state_dict().items()}
        unet.load_state_dict({k: torch.from_numpy(np.asarray(weight(k, s))) for k, s in shapes.items()})
        seen = {}

        def keep(_, __, output, key, seen=seen):
            y = output[0] if isinstance(output, tuple) else output
            seen[key] = y.permute(0, 2, 3, 1).contiguous().numpy()

        for key, block in unet.named_modules():
            if key == 'mid_block' or key.split('.')[0] in ('down_blocks', 'up_blocks') and key.count('.') == 1:
                block.register_forward_hook(lambda *a, key=key: keep(*a, key))
        to_torch = torch.from_numpy
        given = inputs(name)
        x = to_torch(given.pop('x')).permute(0, 3, 1, 2)
        t, text = to_torch(given.pop('t')), to_torch(given.pop('encoder_hidden_states'))
        added = {k: to_torch(v) for k, v in given.pop('added_cond', {}).items()}
        given = {k: to_torch(v) for k, v in given.items()}
        with torch.no_grad():
            y = unet(x, t, text, added_cond_kwargs=added, **given).sample
        out[f'{name}/y'] = y.permute(0, 2, 3, 1).contiguous().numpy()
        out |= {f'{name}/{key}': v for key, v in seen.items()}
        out[f'{name}/shapes'] = np.array(json.dumps(shapes))
        print(f'{name}: {len(shapes)} tensors, {len(seen)} blocks, std {y.std():.3f}, max {y.abs().max():.3f}')
    np.savez_compressed(Path(__file__).with_name('unet_condition.npz'), **out)


if __name__ == '__main__':
    main()
