"""Text to image, image to image and inpainting with published weights: plain functions of variables and prompts.

    pipeline = load_pipeline('stable-diffusion-v1-5/stable-diffusion-v1-5')
    images = pipeline.text_to_image(pipeline.variables, 'a red square', seed=0)      # uint8 [1, 512, 512, 3]

A `Pipeline` holds nothing that a call changes. What recompiles is another size or number of images, another solver, and
guidance_scale=None; guidance_scale, guidance_rescale, strength, prompts, seeds and steps up to max_steps do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from gen_jax.pipelines import program, schedule, text
from gen_jax.pipelines.pictures import check_size, masks, pictures
from gen_jax.pipelines.program import Networks
from gen_jax.types import Array, PyTree

__all__ = ['Pipeline', 'make_pipeline']

MAX_STEPS = 50
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""What SDXL's refiner is told of the picture to make and of the one to avoid, by default (Podell et al. 2023)."""


class Pipeline(NamedTuple):
    """A published pipeline, taken apart; made by `load_pipeline` or `make_pipeline`."""

    variables: Mapping[str, PyTree]
    """Parameters by part: 'unet', 'vae', 'text_encoder' ..."""
    text_to_image: Any
    """(variables, prompt, negative_prompt=None, **settings) -> uint8 [N, H, W, 3]; see `make_pipeline`."""
    image_to_image: Any
    """(variables, prompt, image, negative_prompt=None, strength=0.8, **settings) -> uint8 [N, H, W, 3]."""
    inpaint: Any
    """(variables, prompt, image, mask, negative_prompt=None, strength=1.0, **settings) -> uint8 [N, H, W, 3]."""
    networks: Networks
    scheduler: Mapping[str, Any]
    """scheduler_config.json."""
    index: Mapping[str, Any]
    """model_index.json."""
    source: str | None = None
    """The folder that it was loaded from."""


def make_pipeline(networks: Networks, variables: Mapping[str, PyTree], scheduler: Mapping[str, Any],
                  index: Mapping[str, Any] | None = None, source: str | None = None) -> Pipeline:
    """The functions of a pipeline.

    Settings of all three functions:
        height, width: of the picture (text_to_image only); None is the size that the UNet was trained at. They, or the
            sides of the given picture, need be multiples of the autoencoder's factor only (8 for Stable Diffusion).
        steps: of the solver, up to max_steps (default: 50, or `steps` if that is more), to which rows are padded.
        guidance_scale: w of Ho & Salimans 2022 as diffusers counts it, 1 being none; None calls the UNet once per step
            and compiles a program of its own.
        guidance_rescale: phi of Lin et al. 2024, 0 .. 1.
        images_per_prompt: those of a prompt are next to each other.
        seed: an int, image k having seed + k, or a list of one seed per image. An image depends on its seed only.
        scheduler, solver, spacing, eta ...: see `schedule.solver_of`.
        clip_skip: last layers of the text encoder left out: of the prompt, not of the negative one, as diffusers does.
        latents: starting noise [N, h, w, C], standard normal, in place of the seeds'.
        sample_posterior: False takes the mean of the encoded picture.
        slicing: encode and decode images one by one. tiling: in overlapping tiles, for large pictures.
        output: 'image', or 'latents' (float32, scaled as the UNet has them).

    Negative prompts are texts, one or as many as prompts; None is '', or zeros where the published pipeline says so.
    """
    index = dict(index or {})
    run = program.compiled(networks)

    def call(variables, prompt, negative_prompt, size, inputs, *, steps, guidance_scale, seed, images_per_prompt=1,
             strength=None, from_noise=True, guidance_rescale=0.0, max_steps=None, scheduler=None, solver=None,
             spacing=None, clip_skip=0, latents=None, sample_posterior=True, slicing=False, tiling=False,
             output='image', **options):
        prompts = text.prompts_of(prompt, images_per_prompt)
        n, factor = len(prompts), networks.vae.downsampling_factor
        check_size(*size, factor)
        guided = guidance_scale is not None
        for name, value, low in (('guidance_scale', guidance_scale, 0.0), ('guidance_rescale', guidance_rescale, 0.0)):
            if value is not None and not (isinstance(value, (int, float)) and low <= value < float('inf')):
                raise ValueError(f'{name}={value!r}: give a number of at least {low:g}')
        if output not in ('image', 'latents'):
            raise ValueError(f"output={output!r}: choose 'image' or 'latents'")
        chosen = schedule.solver_of(published, scheduler, solver, spacing, **options)
        chosen, rows = schedule.levels(chosen, steps, strength, max(MAX_STEPS, steps) if max_steps is None
                                       else max_steps)
        latent = size[0] // factor, size[1] // factor
        static = program.Static(chosen, latent, guided, guided and bool(guidance_rescale), int(clip_skip),
                                bool(sample_posterior), from_noise, bool(slicing), bool(tiling), output)
        inputs = {**inputs, 'keys': program.keys_of(_seeds(seed, n)), 'rows': rows,
                  'tokens': text.tokenise(networks.text_encoders, prompts),
                  'guidance_scale': np.float32(guidance_scale or 0.0), 'guidance_rescale': np.float32(guidance_rescale)}
        if guided:
            inputs['negative_tokens'] = text.tokenise(networks.text_encoders, _negatives(negative_prompt, n))
        if networks.xl:
            inputs |= _xl(networks, index, n, size, negative_prompt)
        if latents is not None:
            shape = (n, *latent, networks.vae.latent_channels)
            if np.shape(latents) != shape:
                raise ValueError(f'latents have shape {np.shape(latents)}; give {shape}')
            inputs['latents'] = jax.numpy.asarray(latents, 'float32')
        return run(static, variables, _spread(variables, inputs, n))

    def text_to_image(variables, prompt, negative_prompt=None, *, height=None, width=None, steps=50,
                      guidance_scale=5.0 if networks.xl else 7.5, seed=0, **settings) -> Array:
        _no_picture(networks)
        size = tuple(_native(networks) if side is None else side for side in (height, width))
        return call(variables, prompt, negative_prompt, size, {}, steps=steps, guidance_scale=guidance_scale, seed=seed,
                    **settings)

    def image_to_image(variables, prompt, image, negative_prompt=None, *, strength=0.8, steps=50,
                       guidance_scale=5.0 if networks.xl else 7.5, seed=0, images_per_prompt=1, **settings) -> Array:
        _no_picture(networks)
        n = len(text.prompts_of(prompt, images_per_prompt))
        image = pictures(image, n, networks.vae.downsampling_factor)
        return call(variables, prompt, negative_prompt, image.shape[1:3], {'image': image}, steps=steps, seed=seed,
                    guidance_scale=guidance_scale, strength=strength, from_noise=False,
                    images_per_prompt=images_per_prompt, **settings)

    def inpaint(variables, prompt, image, mask, negative_prompt=None, *, strength=1.0, steps=50,
                guidance_scale=7.5, seed=0, images_per_prompt=1, **settings) -> Array:
        n = len(text.prompts_of(prompt, images_per_prompt))
        image = pictures(image, n, networks.vae.downsampling_factor)
        inputs = {'image': image, 'mask': masks(mask, n, image.shape[1:3])}
        return call(variables, prompt, negative_prompt, image.shape[1:3], inputs, steps=steps, seed=seed,
                    guidance_scale=guidance_scale, strength=strength, from_noise=strength == 1,
                    images_per_prompt=images_per_prompt, **settings)

    published = dict(scheduler)
    schedule.solver_of(published)
    return Pipeline(variables, text_to_image, image_to_image, inpaint, networks, published, index, source)


def _native(networks: Networks) -> int:
    sample = networks.unet.sample_size
    if sample is None:
        raise ValueError("the UNet's config has no sample_size; give height and width")
    return (sample if isinstance(sample, int) else sample[0]) * networks.vae.downsampling_factor


def _no_picture(networks: Networks) -> None:
    wanted, latent = networks.unet.in_channels, networks.vae.latent_channels
    if wanted != latent:
        raise ValueError(f'this UNet takes {wanted} channels, the latents have {latent}' + (
            ': it is an inpainting model, use inpaint' if networks.inpainting else ''))


def _seeds(seed: int | Sequence[int], n: int) -> list[int]:
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    seeds = [int(seed) + k for k in range(n)] if whole else list(seed) if isinstance(seed, Sequence) else None
    if seeds is None or len(seeds) != n or not all(isinstance(s, (int, np.integer)) and 0 <= s < 2**32 for s in seeds):
        raise ValueError(f'seed={seed!r}: give an integer in 0 .. 2^32 - 1, or a list of {n}, one per image')
    return seeds


def _negatives(negative: str | Sequence[str] | None, n: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [negative or ''] * n
    texts = text.prompts_of(negative)
    if n % len(texts):
        raise ValueError(f'{len(texts)} negative prompts for {n} images; give one, or as many as there are prompts')
    return text.prompts_of(texts, n // len(texts))


def _xl(networks: Networks, index: Mapping, n: int, size: tuple[int, int], negative) -> dict[str, np.ndarray]:
    """The numbers that SDXL is told: original size, crop and target size; the refiner a score instead of the last."""
    refiner = bool(index.get('requires_aesthetics_score', False))

    def ids(score):
        row = (*size, 0, 0, score) if refiner else (*size, 0, 0, *size)
        return np.repeat(np.float32([row]), n, 0)

    zero = negative is None and bool(index.get('force_zeros_for_empty_prompt', True))
    return {'time_ids': ids(AESTHETIC_SCORE), 'negative_time_ids': ids(NEGATIVE_AESTHETIC_SCORE),
            'zero_negative': np.float32(zero)}


def _spread(variables: Mapping[str, PyTree], inputs: dict[str, Any], n: int) -> dict[str, Any]:
    """Inputs along the devices on which the variables lie, if those divide the number of images."""
    leaf = jax.tree.leaves(variables['unet'])[0]
    sharding = getattr(leaf, 'sharding', None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or n % sharding.mesh.size:
        return inputs
    mesh = sharding.mesh
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def place(path, value):
        lead = path[0].key not in ('rows', 'guidance_scale', 'guidance_rescale', 'zero_negative')
        return jax.device_put(value, batch if lead else whole)

    return jax.tree_util.tree_map_with_path(place, inputs)


def modules(networks: Networks) -> dict[str, nn.Module]:
    """The network of each part, by the name of its weights."""
    return {'unet': networks.unet, 'vae': networks.vae, **{e.name: e.module for e in networks.text_encoders}}
