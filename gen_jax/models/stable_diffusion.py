"""The published UNets of latent diffusion and Stable Diffusion, by name; and small ones.

The configurations are those of CompVis/latent-diffusion, CompVis/stable-diffusion, Stability-AI/stablediffusion and
Stability-AI/generative-models. Sizes: tests/models/test_sizes.py.
"""

from gen_jax.models.unet_condition import UNet2DCondition

__all__ = [
    'ldm_imagenet_unet',
    'ldm_text2im_unet',
    'sd15_inpaint_unet',
    'sd15_unet',
    'sd21_unclip_unet',
    'sd21_unet',
    'sd2_depth_unet',
    'sd2_inpaint_unet',
    'sd_x4_upscaler_unet',
    'sdxl_refiner_unet',
    'sdxl_unet',
    'unet_condition_shapes',
    'unet_condition_tiny',
]


def sd15_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion 1.x: latents 64x64x4 of 512x512 images, CLIP ViT-L/14's text; 859,520,964 parameters.

    With in_channels=8 it is InstructPix2Pix's, with time_cond_proj_dim=256 that of the first latent consistency models.
    """
    return UNet2DCondition(**{**dict(sample_size=64, cross_attention_dim=768), **overrides})


def sd15_inpaint_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion 1.x for inpainting: latents, the mask, and the masked picture's latents, in this order."""
    return sd15_unet(**{**dict(in_channels=9), **overrides})


def sd21_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion 2.x: heads of 64 channels, OpenCLIP ViT-H/14's text; 865,910,724 parameters.

    768x768 and v-prediction, or 512x512 and noise prediction (the base model, sample_size=64).
    """
    return UNet2DCondition(**{
        **dict(
            sample_size=96,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
            upcast_attention=True,
        ),
        **overrides,
    })


def sd2_inpaint_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion 2.x for inpainting, inputs as in `sd15_inpaint_unet`."""
    return sd21_unet(**{**dict(sample_size=64, in_channels=9), **overrides})


def sd2_depth_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion 2.x with a depth map in [-1, 1] behind the latents."""
    return sd21_unet(**{**dict(sample_size=64, in_channels=5), **overrides})


def sd21_unclip_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion 2.1 that is told a noised image embedding of OpenCLIP ViT-H/14 and how noised it is, too.

    With projection_class_embeddings_input_dim=1536 it is the one for CLIP ViT-L/14's.
    """
    return sd21_unet(**{
        **dict(class_embed_type='projection', projection_class_embeddings_input_dim=2048), **overrides,
    })


def sd_x4_upscaler_unet(**overrides) -> UNet2DCondition:
    """Stable Diffusion's upscaler by 4: latents and the noised small picture; the noise level is the class (0..999)."""
    return UNet2DCondition(**{
        **dict(
            sample_size=128,
            in_channels=7,
            block_out_channels=(256, 512, 512, 1024),
            down_block_types=('DownBlock2D',) + ('CrossAttnDownBlock2D',) * 3,
            up_block_types=('CrossAttnUpBlock2D',) * 3 + ('UpBlock2D',),
            only_cross_attention=(True, True, True, False),
            cross_attention_dim=1024,
            use_linear_projection=True,
            num_class_embeds=1000,
        ),
        **overrides,
    })


def sdxl_unet(**overrides) -> UNet2DCondition:
    """SDXL's base model: latents 128x128x4 of 1024x1024 images, two text encoders; 2,567,463,684 parameters.

    Podell et al., 2023 (https://arxiv.org/abs/2307.01952), section 2.1 and Table 1.
    """
    return UNet2DCondition(**{
        **dict(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
            transformer_layers_per_block=(1, 2, 10),
            **SDXL,
        ),
        **overrides,
    })


def sdxl_refiner_unet(**overrides) -> UNet2DCondition:
    """SDXL's refiner, for the last part of sampling; same source, section 2.5."""
    return UNet2DCondition(**{
        **dict(
            sample_size=128,
            block_out_channels=(384, 768, 1536, 1536),
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
            transformer_layers_per_block=4,
            **{
                **SDXL,
                'attention_head_dim': (6, 12, 24, 24),
                'cross_attention_dim': 1280,
                'projection_class_embeddings_input_dim': 2560,
            },
        ),
        **overrides,
    })


SDXL = dict(
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type='text_time',
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
"""What SDXL's networks have in common, and the numbers of the base model."""


def ldm_text2im_unet(**overrides) -> UNet2DCondition:
    """Latent diffusion's text-to-image model: latents 32x32x4 of 256x256 images; 872,300,484 parameters.

    Rombach et al., 2022 (https://arxiv.org/abs/2112.10752), section 4.3.1 (the 1.45 B parameters count its text
    encoder and autoencoder).
    """
    return UNet2DCondition(**{**dict(sample_size=32), **overrides})


def ldm_imagenet_unet(**overrides) -> UNet2DCondition:
    """Latent diffusion's class-conditional ImageNet model: an embedded class [B, 1, 512] stands for the text.

    Same source, Table 10: latents 32x32x4 by the factor 8; 394,984,196 parameters.
    """
    return UNet2DCondition(**{
        **dict(
            sample_size=32,
            block_out_channels=(256, 512, 1024),
            down_block_types=('CrossAttnDownBlock2D',) * 3,
            up_block_types=('CrossAttnUpBlock2D',) * 3,
            cross_attention_dim=512,
            attention_head_dim=(8, 16, 32),
        ),
        **overrides,
    })


def unet_condition_shapes(**overrides) -> UNet2DCondition:
    """Latents 8x8x4 of the 32x32 scenes of `shapes` and captions of 64-vectors; two resolutions, for CPUs."""
    return UNet2DCondition(**{
        **dict(
            sample_size=8,
            block_out_channels=(64, 128),
            down_block_types=('CrossAttnDownBlock2D',) * 2,
            up_block_types=('CrossAttnUpBlock2D',) * 2,
            layers_per_block=1,
            cross_attention_dim=64,
            attention_head_dim=4,
            norm_num_groups=16,
            use_linear_projection=True,
        ),
        **overrides,
    })


def unet_condition_tiny(**overrides) -> UNet2DCondition:
    """Latents 8x8x4 and a text of 16-vectors, two resolutions as in Stable Diffusion 1.x; for tests."""
    return UNet2DCondition(**{
        **dict(
            sample_size=8,
            block_out_channels=(8, 16),
            down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        **overrides,
    })
