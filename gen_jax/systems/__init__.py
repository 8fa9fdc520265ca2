"""One builder per family: where models meet losses meet samplers."""

from gen_jax.systems.autoencoder import autoencoder_kl
from gen_jax.systems.clip import clip
from gen_jax.systems.diffusion import diffusion
from gen_jax.systems.gan import gan
from gen_jax.systems.vae import vae
from gen_jax.systems.vdm import vdm

__all__ = ['autoencoder_kl', 'clip', 'diffusion', 'gan', 'vae', 'vdm']
