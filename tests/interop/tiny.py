"""A tiny network of every published class, with drawn weights."""

import jax
import numpy as np

from gen_jax import models
from gen_jax.interop.classes import abstract_params
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models.clip_published import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from tests.golden.draws import weight

TEXT = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=9, eos_token_id=49)
IMAGE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8,
             patch_size=4)
SD1 = dict(block_out_channels=(8, 16), down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), cross_attention_dim=16,
           up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), layers_per_block=2, norm_num_groups=4,
           attention_head_dim=2)
MODULES = {
    'unet': models.unet_tiny(),
    'sd1': models.UNet2DCondition(**SD1),
    'sd2': models.UNet2DCondition(**{**SD1, 'attention_head_dim': (2, 4), 'use_linear_projection': True}),
    'vae': models.autoencoder_kl_tiny(),
    'clip': models.clip_tiny(vocab_size=50, max_length=9, eos_token_id=49),
    'clip_pixels': models.clip_tiny(pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.4, 0.5, 0.6)),
    'text': CLIPTextModel(**TEXT),
    'text_argmax': CLIPTextModel(**{**TEXT, 'eos_token_id': 2}),
    'text_projection': CLIPTextModelWithProjection(**TEXT, projection_dim=6),
    'image': CLIPVisionModel(**IMAGE),
    'image_projection': CLIPVisionModelWithProjection(**IMAGE, projection_dim=6),
}


def drawn(module):
    """Parameters of which none is 0 or 1."""
    shapes = abstract_params(module)
    keys = to_torch(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
    return from_torch({k: weight(k, v.shape) for k, v in keys.items()}, shapes)
