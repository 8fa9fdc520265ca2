"""The one program of a pipeline: token ids (and a picture, and a mask) to uint8 pixels, in a single jitted call.

Latent diffusion, Rombach et al. 2022 (https://arxiv.org/abs/2112.10752); image-to-image is SDEdit in the latent space;
inpainting puts known latents back at every level, or tells a UNet of 9 channels the mask and the masked picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import sampling
from gen_jax.diffusion.guidance import classifier_free
from gen_jax.diffusion.process import perturb
from gen_jax.models.tiling import sliced, tiled_decode, tiled_encode
from gen_jax.pipelines import schedule, text
from gen_jax.pipelines.pictures import to_uint8
from gen_jax.rng import Noise
from gen_jax.types import Array, DenoiseFn, Level, PyTree

__all__ = ['Networks', 'Static', 'generate']


class Networks(NamedTuple):
    """The modules of a pipeline; their weights are given to every call."""

    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[text.TextEncoder, ...]
    """In the order in which their states are put side by side."""
    xl: bool = False
    """SDXL: penultimate states, pooled text and sizes."""

    @property
    def inpainting(self) -> bool:
        """Whether the UNet is told mask and masked picture."""
        return self.unet.in_channels == 2 * self.vae.latent_channels + 1


class Static(NamedTuple):
    """What a program is compiled for; hashable."""

    solver: schedule.Solver
    latent: tuple[int, int]
    """Height and width of the latents."""
    guided: bool
    rescaled: bool = False
    clip_skip: int = 0
    sample_posterior: bool = True
    from_noise: bool = True
    """False: starts from the picture, perturbed."""
    slicing: bool = False
    tiling: bool = False
    output: str = 'image'


def generate(networks: Networks, static: Static, variables: Mapping[str, PyTree], inputs: Mapping[str, Any]) -> Array:
    """Pixels uint8 [B, H, W, 3], or latents float32 if static.output says so.

    Args:
        variables: parameters by part: 'unet', 'vae' and the names of the text encoders.
        inputs: 'keys' [B]; 'tokens' and, if guided, 'negative_tokens': int32 [B, L] by text encoder; 'rows', a
            `schedule.Rows`; 'guidance_scale'; 'guidance_rescale'; optionally 'latents' [B, h, w, C] in place of the
            starting noise, 'image' [B, H, W, 3] in [-1, 1], 'mask' [B, H, W, 1] (1 is painted); for SDXL 'time_ids'
            [B, K], 'negative_time_ids' and 'zero_negative', which is () and 1 for a negative prompt of zeros.
    """
    rows, noise = inputs['rows'], Noise(inputs['keys'])
    process, parameterisation, sampler, clip = schedule.parts(static.solver, rows)
    cond = _told(networks, static, variables, inputs, '')
    shape = (inputs['keys'].shape[0], *static.latent, networks.vae.latent_channels)
    z = inputs['latents'] if 'latents' in inputs else noise.normal('x_T', shape)
    first = Level(*(jnp.asarray(leaf)[0] for leaf in rows.grid))
    x_T = rows.start * z
    known = mask = None
    if 'image' in inputs:
        known = _encode(networks, static, variables, inputs['image'], noise, 'posterior')
        if not static.from_noise:
            x_T = perturb(known, z, first)
    if 'mask' in inputs:
        painted = inputs['mask']
        # The pixel in the corner of every latent's square, as nearest-neighbour resizing has it.
        factor = painted.shape[1] // static.latent[0], painted.shape[2] // static.latent[1]
        mask = painted[:, ::factor[0], ::factor[1]]
        if networks.inpainting:
            masked = _encode(networks, static, variables, inputs['image'] * (1.0 - painted), noise, 'masked')
            cond = {**cond, 'beside': jnp.concatenate([mask, masked], -1)}

    def network(x, t, cond):
        added = {k: cond[k] for k in ('text_embeds', 'time_ids') if k in cond}
        x = jnp.concatenate([x, cond['beside']], -1) if 'beside' in cond else x
        return networks.unet.apply({'params': variables['unet']}, x, t, cond['encoder_hidden_states'],
                                   **({'added_cond': added} if added else {}))

    denoise = parameterisation.denoiser(network, process)
    if static.guided:
        space = parameterisation.space[0] if parameterisation.space[0] in ('eps', 'x0', 'v') else 'v'
        denoise = classifier_free(inputs['guidance_scale'], _told(networks, static, variables, inputs, 'negative_'),
                                  inputs['guidance_rescale'] if static.rescaled else 0.0, space)(denoise)
    denoise = clip(denoise)
    if mask is not None and not networks.inpainting:
        denoise = _keep(denoise, known, mask, z, static.from_noise)
        sampler = sampling.chain(sampler, sampling.replace_known(known, 1.0 - mask, eps=z))
    x = sampling.sample(noise, denoise, sampler, x_T, rows.grid, cond).x
    return x if static.output == 'latents' else _decode(networks, static, variables, x)


def _told(networks: Networks, static: Static, variables, inputs, negative: str) -> dict[str, Array]:
    """The condition of one branch."""
    told = text.encode(networks.text_encoders, variables, inputs[f'{negative}tokens'], penultimate=networks.xl,
                       clip_skip=0 if negative else static.clip_skip)
    if networks.xl:
        if negative:
            told = {k: v * (1.0 - inputs['zero_negative']) for k, v in told.items()}
        told['time_ids'] = inputs[f'{negative}time_ids']
    return told


def _keep(denoise: DenoiseFn, known: Array, mask: Array, z: Array, from_noise: bool) -> DenoiseFn:
    """Known latents, noised by z, wherever the network looks; not at the start from noise alone.

    `replace_known` does it after every step; this does it between the calls of one step.
    """
    def kept(x: Array, level: Level, cond):
        here = mask * x + (1.0 - mask) * perturb(known, z, level)
        return denoise(jnp.where(level.index > 0, here, x) if from_noise else here, level, cond)

    return kept


def _encode(networks: Networks, static: Static, variables, image: Array, noise: Noise, purpose: str) -> Array:
    """Latents as the UNet knows them."""
    vae, read = networks.vae, {'params': variables['vae']}
    if static.tiling:
        mean, log_var = tiled_encode(vae, read, image)
    else:
        apply = lambda image: vae.apply(read, image, method='encode')  # noqa: E731
        mean, log_var = (sliced(apply) if static.slicing else apply)(image)
    if static.sample_posterior:
        mean = mean + jnp.exp(0.5 * log_var) * noise.normal(purpose, mean)
    return (mean - (vae.shift_factor or 0.0)) * vae.scaling_factor


def _decode(networks: Networks, static: Static, variables, x: Array) -> Array:
    vae, read = networks.vae, {'params': variables['vae']}
    z = x / vae.scaling_factor + (vae.shift_factor or 0.0)
    if static.tiling:
        return to_uint8(tiled_decode(vae, read, z))
    apply = lambda z: to_uint8(vae.apply(read, z, method='decode'))  # noqa: E731
    return (sliced(apply) if static.slicing else apply)(z)


def compiled(networks: Networks):
    """(static, variables, inputs) -> pixels, jitted; a program for each static and each shape."""
    return jax.jit(lambda static, variables, inputs: generate(networks, static, variables, inputs), static_argnums=0)


def keys_of(seeds: Sequence[int]) -> Array:
    """Typed keys [B]: image k depends on seed k and on nothing else."""
    return jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
