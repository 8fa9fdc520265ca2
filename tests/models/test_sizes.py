"""Published networks have their published number of parameters, to the last digit: one row each."""

import functools

import jax
import jax.numpy as jnp
import pytest

from gen_jax import models, trees

CLASS = {'class_labels': ()}


def text(width, **more):
    """Conditions of a UNet2DCondition: a text of such vectors, and others."""
    return {'encoder_hidden_states': (77, width), **more}


def text_time(pooled, numbers):
    """Those that SDXL adds."""
    return (('text_embeds', (pooled,)), ('time_ids', (numbers,)))


SIZES = {
    # variant: (factory, overrides, image shape, conditions (shapes behind the batch axis), parameters)
    'DDPM/cifar10': ('ddpm_cifar10', {}, (32, 32, 3), {}, 35_746_307),
    'DDPM/celebahq-256': ('ddpm_celebahq_256', {}, (256, 256, 3), {}, 113_673_219),
    'ADM/64-cond': ('adm_imagenet64', {}, (64, 64, 3), CLASS, 295_904_454),
    'ADM/128-cond': ('adm_imagenet128', {}, (128, 128, 3), CLASS, 421_529_606),
    'ADM/256-cond': ('adm_imagenet256', {}, (256, 256, 3), CLASS, 553_838_086),
    'ADM/256-uncond': ('adm_imagenet256', {'num_classes': None}, (256, 256, 3), {}, 552_814_086),
    'ADM/512-cond': ('adm_imagenet512', {}, (512, 512, 3), CLASS, 558_997_638),
    'ADM/LSUN-256-bedroom': ('adm_lsun256', {}, (256, 256, 3), {}, 552_814_086),
    'ADM/upsampler-64-256': (
        'adm_upsampler_64_256', {}, (256, 256, 3), {**CLASS, 'low_res': (64, 64, 3)}, 311_795_910),
    'ADM/upsampler-128-512': (
        'adm_upsampler_128_512', {}, (512, 512, 3), {**CLASS, 'low_res': (128, 128, 3)}, 308_835_270),
    'ADM/classifier-64': ('adm_classifier_imagenet64', {}, (64, 64, 3), {}, 65_438_568),
    'ADM/classifier-128': ('adm_classifier_imagenet128', {}, (128, 128, 3), {}, 42_568_040),
    'ADM/classifier-256': ('adm_classifier_imagenet256', {}, (256, 256, 3), {}, 54_096_360),
    'ADM/classifier-512': ('adm_classifier_imagenet512', {}, (512, 512, 3), {}, 54_448_360),
    'iDDPM/cifar10-uncond 50M': ('iddpm_cifar10', {}, (32, 32, 3), {}, 52_546_438),
    'iDDPM/imagenet64-uncond 100M': ('iddpm_imagenet64', {}, (64, 64, 3), {}, 121_063_942),
    'iDDPM/imagenet64-cond 270M': (
        'iddpm_imagenet64', {'model_channels': 192, 'num_classes': 1000}, (64, 64, 3), CLASS, 273_049_350),
    'iDDPM/lsun-bedroom-256': ('iddpm_lsun256', {}, (256, 256, 3), {}, 113_676_678),
    'iDDPM/upsampler-64-256': (
        'iddpm_upsampler_64_256', {}, (256, 256, 3), {**CLASS, 'low_res': (64, 64, 3)}, 279_792_390),
    'VDM/cifar10': ('vdm_cifar10', {}, (32, 32, 3), {}, 30_578_181),
    'VDM/cifar10_aug': ('vdm_cifar10_aug', {}, (32, 32, 3), {}, 122_140_677),
    'VDM/imagenet32': ('vdm_imagenet32', {}, (32, 32, 3), {}, 122_137_605),
    'VDM/imagenet64': ('vdm_imagenet64', {}, (64, 64, 3), {}, 237_603_845),
    'score_sde/subvp/cifar10_ddpm_continuous': ('ddpm_score_sde_cifar10', {}, (32, 32, 3), {}, 35_218_947),
    'score_sde/subvp/cifar10_ddpmpp_continuous': ('ddpmpp_cifar10', {}, (32, 32, 3), {}, 61_804_419),
    'score_sde/subvp/cifar10_ddpmpp_deep_continuous': ('ddpmpp_cifar10', {'deep': True}, (32, 32, 3), {}, 106_632_579),
    'score_sde/subvp/cifar10_ncsnpp_continuous': ('ncsnpp_cifar10', {'sde': 'vp'}, (32, 32, 3), {}, 62_693_251),
    'score_sde/subvp/cifar10_ncsnpp_deep_continuous': (
        'ncsnpp_cifar10', {'sde': 'vp', 'deep': True}, (32, 32, 3), {}, 107_521_411),
    'score_sde/ve/celeba_ncsnpp': ('ncsnpp_celeba_64', {}, (64, 64, 3), {}, 62_693_251),
    'score_sde/ve/celebahq_256_ncsnpp_continuous': ('ncsnpp_256', {}, (256, 256, 3), {}, 65_574_549),
    'score_sde/ve/church_ncsnpp_continuous': ('ncsnpp_256', {'sigma_max': 380}, (256, 256, 3), {}, 65_574_549),
    'score_sde/ve/cifar10_ddpm': ('ddpm_score_sde_cifar10', {'sde': 've'}, (32, 32, 3), {}, 35_218_947),
    'score_sde/ve/cifar10_ncsnpp': ('ncsnpp_cifar10', {'continuous': False}, (32, 32, 3), {}, 62_693_251),
    'score_sde/ve/cifar10_ncsnpp_continuous': ('ncsnpp_cifar10', {}, (32, 32, 3), {}, 62_758_915),
    'score_sde/ve/ffhq_256_ncsnpp_continuous': ('ncsnpp_256', {}, (256, 256, 3), {}, 65_574_549),
    'score_sde/ve/ffhq_ncsnpp_continuous': ('ncsnpp_ffhq_1024', {}, (1024, 1024, 3), {}, 105_785_896),
    'score_sde/vp/cifar10_ddpmpp': ('ddpmpp_cifar10', {}, (32, 32, 3), {}, 61_804_419),
    'score_sde/vp/cifar10_ddpmpp_continuous': ('ddpmpp_cifar10', {}, (32, 32, 3), {}, 61_804_419),
    'score_sde/vp/cifar10_ncsnpp': ('ncsnpp_cifar10', {'sde': 'vp'}, (32, 32, 3), {}, 62_693_251),
    'score_sde/vp/cifar10_ncsnpp_continuous': ('ncsnpp_cifar10', {'sde': 'vp'}, (32, 32, 3), {}, 62_693_251),
    'score_sde/vp/cifar10_ncsnpp_deep_continuous': (
        'ncsnpp_cifar10', {'sde': 'vp', 'deep': True}, (32, 32, 3), {}, 107_521_411),
    'score_sde/vp/ddpm/church': ('ddpm_score_sde_256', {}, (256, 256, 3), {}, 111_569_923),
    'score_sde/vp/ddpm/cifar10': ('ddpm_score_sde_cifar10', {}, (32, 32, 3), {}, 35_218_947),
    'score_sde/vp/ddpm/cifar10_continuous': ('ddpm_score_sde_cifar10', {}, (32, 32, 3), {}, 35_218_947),
    'score_sde/vp/ddpm/celebahq': ('ddpm_score_sde_256', {}, (256, 256, 3), {}, 111_569_923),
    'EDM/cifar10-32-uncond-ddpmpp(vp)': ('edm_ddpmpp', {}, (32, 32, 3), {}, 55_733_891),
    'EDM/cifar10-32-cond-ddpmpp(vp)': ('edm_ddpmpp', {'label_dim': 10}, (32, 32, 3), CLASS, 55_735_299),
    # The 128 frequencies are a buffer there, a parameter without a gradient here.
    'EDM/cifar10-32-uncond-ncsnpp(ve)': ('edm_ncsnpp', {}, (32, 32, 3), {}, 56_397_827 + 128),
    'EDM/cifar10-32-cond-ncsnpp(ve)': ('edm_ncsnpp', {'label_dim': 10}, (32, 32, 3), CLASS, 56_400_643 + 128),
    'EDM/imagenet-64-cond-adm': ('edm_adm_imagenet64', {}, (64, 64, 3), CLASS, 295_899_267),
    'NCSN/CondRefineNetDilated MNIST': ('ncsn_mnist', {}, (28, 28, 1), {}, 7_638_657),
    'NCSN/CondRefineNetDilated CIFAR10+CelebA': ('ncsn_cifar10', {}, (32, 32, 3), {}, 30_117_635),
    'NCSNv2/cifar10': ('ncsnv2_cifar10', {}, (32, 32, 3), {}, 29_694_083),
    'NCSNv2/celeba': ('ncsnv2_celeba', {}, (64, 64, 3), {}, 29_694_083),
    'NCSNv2/bedroom NCSNv2Deeper': ('ncsnv2_lsun', {}, (128, 128, 3), {}, 83_445_379),
    'NCSNv2/ffhq NCSNv2Deepest': ('ncsnv2_ffhq', {}, (256, 256, 3), {}, 94_132_611),
    'SD1.5/unet': ('sd15_unet', {}, (64, 64, 4), text(768), 859_520_964),
    'SD-image-variations/unet': ('sd15_unet', {}, (64, 64, 4), text(768), 859_520_964),
    'SD1-inpaint/unet': ('sd15_inpaint_unet', {}, (64, 64, 9), text(768), 859_535_364),
    'InstructPix2Pix/unet': ('sd15_unet', {'in_channels': 8}, (64, 64, 8), text(768), 859_532_484),
    'LCM-Dreamshaper-v7/unet': (
        'sd15_unet', {'time_cond_proj_dim': 256}, (64, 64, 4), text(768, timestep_cond=(256,)), 859_602_884),
    'SD2.1/unet': ('sd21_unet', {}, (96, 96, 4), text(1024), 865_910_724),
    'SD2-inpaint/unet': ('sd2_inpaint_unet', {}, (64, 64, 9), text(1024), 865_925_124),
    'SD2-depth/unet': ('sd2_depth_unet', {}, (64, 64, 5), text(1024), 865_913_604),
    'SD2.1-unclip-h/unet': ('sd21_unclip_unet', {}, (96, 96, 4), text(1024, class_labels=(2048,)), 870_173_124),
    'SD2.1-unclip-l/unet': (
        'sd21_unclip_unet', {'projection_class_embeddings_input_dim': 1536}, (96, 96, 4),
        text(1024, class_labels=(1536,)), 869_517_764),
    'SD-x4-upscaler/unet': ('sd_x4_upscaler_unet', {}, (128, 128, 7), text(1024, **CLASS), 473_398_020),
    'SDXL-base/unet': (
        'sdxl_unet', {}, (128, 128, 4), text(2048, added_cond=text_time(1280, 6)), 2_567_463_684),
    'SDXL-refiner/unet': (
        'sdxl_refiner_unet', {}, (128, 128, 4), text(1280, added_cond=text_time(1280, 5)), 2_259_526_660),
    'LDM/txt2img-1p4B-eval unet': ('ldm_text2im_unet', {}, (32, 32, 4), text(1280), 872_300_484),
    'LDM/cin-ldm-vq-f8 unet': (
        'ldm_imagenet_unet', {}, (32, 32, 4), {'encoder_hidden_states': (1, 512)}, 394_984_196),
    # Conditions None: a network of one array alone.
    'SD/vae kl-f8': ('sd_vae', {}, (512, 512, 3), None, 83_653_863),
    'SDXL/vae': ('sdxl_vae', {}, (1024, 1024, 3), None, 83_653_863),
    'SD-x4-upscaler/vae f4': ('sd_x4_upscaler_vae', {}, (256, 256, 3), None, 55_325_927),
    'LDM/kl-f4': ('ldm_kl_f4', {}, (256, 256, 3), None, 55_312_063),
    'LDM/kl-f8': ('ldm_kl_f8', {}, (256, 256, 3), None, 83_653_863),
    'VQGAN/PatchGAN D n_layers 3': ('patch_discriminator_70', {}, (256, 256, 3), None, 2_765_633),
    'VQGAN/PatchGAN D n_layers 2': ('patch_discriminator_70', {'layers': 2}, (256, 256, 3), None, 663_361),
    'AudioLDM/vae': (
        'ldm_kl_f4', {'in_channels': 1, 'out_channels': 1, 'latent_channels': 8}, (256, 64, 1), None, 55_376_873),
    'DCGAN/generator 64x64': ('dcgan_generator_64', {}, (100,), None, 3_576_704),
    'DCGAN/discriminator 64x64': ('dcgan_discriminator_64', {}, (64, 64, 3), None, 2_765_568),
}

CLIP_SIZES = {
    # variant: (factory, overrides, parameters of: all, the text tower, the text projection, and both of the image)
    'CLIP ViT-B/32': ('clip_vit_b32', {}, (151_277_313, 63_165_952, 262_144, 87_456_000, 393_216)),
    'CLIP ViT-B/16': ('clip_vit_b16', {}, (149_620_737, 63_165_952, 262_144, 85_799_424, 393_216)),
    'CLIP ViT-L/14': ('clip_vit_l14', {}, (427_616_513, 123_060_480, 589_824, 303_179_776, 786_432)),
    'CLIP ViT-L/14@336': (
        'clip_vit_l14', {'image_size': 336}, (427_944_193, 123_060_480, 589_824, 303_507_456, 786_432)),
    'OpenCLIP ViT-B/32 laion2b': ('openclip_vit_b32', {}, (151_277_313, 63_165_952, 262_144, 87_456_000, 393_216)),
    'OpenCLIP ViT-H/14': ('openclip_vit_h14', {}, (986_109_441, 352_984_064, 1_048_576, 630_766_080, 1_310_720)),
    'OpenCLIP ViT-bigG/14': (
        'openclip_vit_bigg14', {}, (2_539_567_105, 693_021_440, 1_638_400, 1_842_777_344, 2_129_920)),
}
CLIP_TOWERS = {
    'SD1.x text': ('clip_text_sd15', 123_060_480),
    'SD2.x text (23 of 24 layers of ViT-H)': ('clip_text_sd21', 340_387_840),
    'SDXL text': ('clip_text_sdxl', 123_060_480),
    'SDXL text 2': ('clip_text_sdxl_2', 694_659_840),
    'CLIP ViT-B/32 CLIPTextModel': ('CLIPTextModel', 63_165_952),
    'CLIP ViT-B/32 CLIPTextModelWithProjection': ('CLIPTextModelWithProjection', 63_428_096),
    'CLIP ViT-B/32 CLIPVisionModel': ('CLIPVisionModel', 87_456_000),
    'CLIP ViT-B/32 CLIPVisionModelWithProjection': ('CLIPVisionModelWithProjection', 87_849_216),
}


# These differ from others above by a layer or two.
SLOW = ('SD1-inpaint/unet', 'InstructPix2Pix/unet', 'LCM-Dreamshaper-v7/unet', 'SD2-inpaint/unet', 'SD2-depth/unet',
        'SD2.1-unclip-h/unet', 'SD2.1-unclip-l/unet')


def zeros(name, shape):
    if name == 'added_cond':
        return {k: zeros(k, s) for k, s in shape}
    return jnp.zeros((1, *shape), int if name == 'class_labels' else jnp.float32)


@functools.cache
def count(factory, overrides, image_shape, conditions):
    network = getattr(models, factory)(**dict(overrides))
    cond = {k: zeros(k, s) for k, s in conditions or ()}
    time = () if conditions is None else (jnp.ones(1),)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), *time, **cond))
    return trees.count(shapes['params'])


@pytest.mark.parametrize('variant', [pytest.param(v, marks=pytest.mark.slow) if v in SLOW else v for v in SIZES])
def test_size(variant):
    factory, overrides, image_shape, conditions, expected = SIZES[variant]
    conditions = conditions if conditions is None else tuple(conditions.items())
    assert count(factory, tuple(overrides.items()), image_shape, conditions) == expected


@pytest.mark.parametrize('variant', CLIP_SIZES)
def test_size_of_clip(variant):
    factory, overrides, (whole, *parts) = CLIP_SIZES[variant]
    network = getattr(models, factory)(**overrides)
    image, tokens = jnp.zeros((1, network.image_size, network.image_size, 3)), jnp.zeros((1, 77), int)
    params = jax.eval_shape(network.init, jax.random.key(0), image, tokens)['params']
    names = ('text_model', 'text_projection', 'vision_model', 'visual_projection')
    assert [trees.count(params), *(trees.count(params[name]) for name in names)] == [whole, *parts]


@pytest.mark.parametrize('variant', CLIP_TOWERS)
def test_size_of_clip_towers(variant):
    factory, expected = CLIP_TOWERS[variant]
    network = getattr(models, factory)()
    x = jnp.zeros((1, 224, 224, 3)) if 'Vision' in factory else jnp.zeros((1, 77), int)
    assert trees.count(jax.eval_shape(network.init, jax.random.key(0), x)['params']) == expected
