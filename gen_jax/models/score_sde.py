"""The networks of 'Score-based generative modeling through SDEs' (Song et al., 2021), as its code publishes them.

What they are told and what they return, with the parameterisation that says so:
    VP and sub-VP, continuous: told 999 t, they return eps: `eps(label_scale=999)`.
    VP, 1000 steps: told the index, they return eps: `eps()` with a discrete process.
    VE, continuous ('fourier'): told sigma, of which they take the logarithm, and by which they divide their output,
        which is the score: `score(label='sigma')`; the published loss weighs it by sigma^2: `weighting.snr('score')`.
    VE, 1000 scales ('positional'): told the row of the table, the greatest sigma first, by whose sigma they divide
        their output: `score(label='descending')` with the process of the table.
VE networks were trained on images in [0, 1] (image_range=(0, 1) of `systems.diffusion`), which they map, noise and all,
to [-1, 1] (`center_input_sample`). For images in [-1, 1], set center_input_sample=False and double sigma_min and
sigma_max.
A published state dict has the keys of `SongUNet` behind `module.`, and the buffer `sigmas`, a constant here:
`from_torch(state_dict, params, ignore='^sigmas$')` once the prefix is gone.
"""

from gen_jax.models.song_unet import SongUNet

__all__ = [
    'ddpm_score_sde_256',
    'ddpm_score_sde_cifar10',
    'ddpmpp_cifar10',
    'ddpmpp_digits',
    'ncsnpp_256',
    'ncsnpp_celeba_64',
    'ncsnpp_cifar10',
    'ncsnpp_digits',
    'ncsnpp_ffhq_1024',
]

NCSNPP = dict(layout='score_sde', resample_filter=(1, 3, 3, 1), encoder_type='residual')
"""What makes DDPM++ NCSN++ (§4.1 and Appendix H.1)."""
VE = dict(scale_by_sigma=True, center_input_sample=True)
CONTINUOUS_VE = dict(**VE, embedding_type='fourier', channel_mult_noise=2)
PYRAMIDS = dict(encoder_type='skip', decoder_type='skip', num_scales=2000, dropout=0.0)
"""What images above 64x64 add (Appendix H.3)."""


def ddpmpp_cifar10(deep: bool = False, **overrides) -> SongUNet:
    """DDPM++ for CIFAR-10, VP and sub-VP: 61,804,419 parameters; 106,632,579 if `deep`. Appendix H.2."""
    return SongUNet(**{**dict(layout='score_sde', num_blocks=8 if deep else 4), **overrides})


def ncsnpp_cifar10(sde: str = 've', continuous: bool = True, deep: bool = False, **overrides) -> SongUNet:
    """NCSN++ for CIFAR-10: 62,758,915 parameters with VE and continuous time, otherwise 62,693,251. Appendix H.1.

    Args:
        sde: 've', whose network returns a score, or 'vp' (sub-VP too), whose network returns eps.
        continuous: False for VE over a table of 1000 scales; VP has one network for both.
        deep: 8 residual blocks per resolution, not 4; 107,521,411 parameters with VP, 107,587,075 with VE.
        overrides: fields of `SongUNet`.

    Raises:
        ValueError: unknown sde.
    """
    if sde not in ('ve', 'vp'):
        raise ValueError(f"unknown sde {sde!r}; choose 've' or 'vp' (which serves sub-VP)")
    kind = {} if sde == 'vp' else CONTINUOUS_VE if continuous else VE
    return SongUNet(**{**NCSNPP, **kind, **dict(num_blocks=8 if deep else 4), **overrides})


def ncsnpp_celeba_64(**overrides) -> SongUNet:
    """NCSN++ for CelebA at 64x64, VE over a table of 1000 scales: 62,693,251 parameters. Appendix H.1."""
    return SongUNet(**{**NCSNPP, **VE, **dict(img_resolution=64, sigma_max=90.0), **overrides})


def ncsnpp_256(sigma_max: float = 348.0, **overrides) -> SongUNet:
    """NCSN++ for 256x256, VE: 65,574,549 parameters. CelebA-HQ and FFHQ (sigma_max 348), LSUN (380). Appendix H.3."""
    return SongUNet(**{
        **NCSNPP,
        **CONTINUOUS_VE,
        **PYRAMIDS,
        **dict(img_resolution=256, channel_mult=(1, 1, 2, 2, 2, 2, 2), num_blocks=2, sigma_max=sigma_max),
        **overrides,
    })


def ncsnpp_ffhq_1024(**overrides) -> SongUNet:
    """NCSN++ for FFHQ at 1024x1024, VE: 105,785,896 parameters. Appendix H.3."""
    return SongUNet(**{
        **NCSNPP,
        **CONTINUOUS_VE,
        **PYRAMIDS,
        **dict(img_resolution=1024, model_channels=16, channel_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_blocks=1),
        **dict(sigma_max=1348.0),
        **overrides,
    })


DDPM = dict(layout='score_sde', resblock_type='ddpm', skip_rescale=False, num_groups=32, num_blocks=2)
"""score_sde's `ddpm` model: unlike that of Ho et al. it has one attention per resolution on the way up."""


def ddpm_score_sde_cifar10(sde: str = 'vp', **overrides) -> SongUNet:
    """The `ddpm` model of score_sde for CIFAR-10: 35,218,947 parameters; `sde` as in `ncsnpp_cifar10`.

    Raises:
        ValueError: unknown sde.
    """
    if sde not in ('ve', 'vp'):
        raise ValueError(f"unknown sde {sde!r}; choose 've' or 'vp' (which serves sub-VP)")
    return SongUNet(**{**DDPM, **(VE if sde == 've' else {}), **overrides})


def ddpm_score_sde_256(**overrides) -> SongUNet:
    """The `ddpm` model of score_sde for CelebA-HQ and LSUN at 256x256, VP: 111,569,923 parameters."""
    return SongUNet(**{
        **DDPM, **dict(img_resolution=256, channel_mult=(1, 1, 2, 2, 4, 4), dropout=0.0), **overrides
    })


DIGITS = dict(
    img_resolution=8, in_channels=1, out_channels=1, label_dim=10, model_channels=64, channel_mult=(1, 1), num_blocks=1,
    channel_mult_emb=2, attn_resolutions=(4,), dropout=0.0,
)
"""8x8 grey digits; label 10 stands for no class."""


def ddpmpp_digits(**overrides) -> SongUNet:
    """DDPM++ for 8x8 grey digits with 10 classes and the label 10 for none: about 1.1 M parameters, for CPUs."""
    return SongUNet(**{**dict(layout='score_sde'), **DIGITS, **overrides})


def ncsnpp_digits(**overrides) -> SongUNet:
    """NCSN++ (VE, continuous, images in [-1, 1]) for 8x8 grey digits with 10 classes: about 1.1 M parameters."""
    return SongUNet(**{**NCSNPP, **CONTINUOUS_VE, **DIGITS, **dict(center_input_sample=False), **overrides})
