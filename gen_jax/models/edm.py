"""The networks of 'Elucidating the design space of diffusion-based generative models' (Karras et al., 2022).

Their label is c_noise and their input c_in x of the preconditioning: parameterisation `edm()`. The state dict of a
published snapshot holds them under the prefix `model.`, with buffers that are constants here; without the prefix it is
loaded by `from_torch(state_dict, params, ignore='resample_filter$')`.
"""

from gen_jax.models.score_sde import DIGITS
from gen_jax.models.song_unet import SongUNet

__all__ = ['edm_adm_digits', 'edm_adm_imagenet64', 'edm_ddpmpp', 'edm_ncsnpp', 'songunet_digits']


def edm_ddpmpp(**overrides) -> SongUNet:
    """SongUNet as DDPM++ (config F, 'VP') for CIFAR-10, augmented: 55,733,891 parameters, 55,735,299 with label_dim=10.

    Table 7 and Appendix F.3; FFHQ and AFHQv2 at 64x64: img_resolution=64, channel_mult=(1, 2, 2, 2), dropout=0.05 or
    0.25.
    """
    return SongUNet(**{**dict(channel_mult=(2, 2, 2), augment_dim=9, dropout=0.13), **overrides})


def edm_ncsnpp(**overrides) -> SongUNet:
    """SongUNet as NCSN++ (config F, 'VE') for CIFAR-10, augmented: 56,397,827 parameters, 56,400,643 with label_dim=10.

    And 128 frequencies, which EDM counts as a buffer. Table 7 and Appendix F.3.
    """
    ncsnpp = dict(
        embedding_type='fourier', channel_mult_noise=2, encoder_type='residual', resample_filter=(1, 3, 3, 1))
    return edm_ddpmpp(**{**ncsnpp, **overrides})


ADM = dict(
    layout='dhariwal', adaptive_scale=True, skip_rescale=False, resample_proj=False, decoder_attention='every',
)


def edm_adm_imagenet64(**overrides) -> SongUNet:
    """DhariwalUNet for ImageNet at 64x64 with 1000 classes: 295,899,267 parameters. Table 7 and Appendix F.3."""
    return SongUNet(**{
        **ADM,
        **dict(img_resolution=64, label_dim=1000, model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3),
        **dict(attn_resolutions=(32, 16, 8), channels_per_head=64, dropout=0.1),
        **overrides,
    })


def songunet_digits(**overrides) -> SongUNet:
    """SongUNet as DDPM++ for 8x8 grey digits with 10 classes and the label 10 for none: about 1.1 M parameters."""
    return SongUNet(**{**DIGITS, **overrides})


def edm_adm_digits(**overrides) -> SongUNet:
    """DhariwalUNet for 8x8 grey digits with 10 classes and the label 10 for none."""
    return SongUNet(**{**ADM, **DIGITS, **dict(channels_per_head=16), **overrides})
