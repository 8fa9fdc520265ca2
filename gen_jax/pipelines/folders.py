"""Pipelines from folders in the layout of the hub, and back."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.interop.export import save_model
from gen_jax.interop.formats import write_json
from gen_jax.interop.hub import parts_of, read_json, resolve_pipeline
from gen_jax.interop.load import open_model
from gen_jax.pipelines.pipeline import Pipeline, make_pipeline, modules
from gen_jax.pipelines.program import Networks
from gen_jax.pipelines.schedulers import read_scheduler_config, save_scheduler
from gen_jax.pipelines.text import TextEncoder
from gen_jax.tokenizers.clip_bpe import ClipTokenizer

__all__ = ['load_pipeline', 'save_pipeline']

CLASSES = {
    **dict.fromkeys(('StableDiffusionPipeline', 'StableDiffusionImg2ImgPipeline', 'StableDiffusionInpaintPipeline'),
                    False),
    **dict.fromkeys(('StableDiffusionXLPipeline', 'StableDiffusionXLImg2ImgPipeline',
                     'StableDiffusionXLInpaintPipeline'), True),
}
"""Published pipeline -> whether it is SDXL."""
UNUSED = ('safety_checker', 'feature_extractor', 'image_encoder')


def load_pipeline(path_or_id, dtype=None, variant: str | None = None, *,
                  place: Callable[[np.ndarray], Any] = jax.device_put, **options) -> Pipeline:
    """A Stable Diffusion 1.x, 2.x or XL pipeline from a folder or the hub.

    Args:
        path_or_id: a folder that holds model_index.json, or a hub id 'owner/name'.
        dtype: of parameters and computation, for instance 'bfloat16'; None is float32. An autoencoder that overflows in
            float16 (force_upcast) stays float32 then.
        variant: of the weights: 'fp16' reads `*.fp16.safetensors`.
        place: takes each parameter to where it shall live; the default is the first device. Parameters that are
            replicated over a mesh have the images of a batch computed on all of its devices.
        options: revision, cache_dir, token, offline: see `gen_jax.interop.hub.resolve`.

    Returns:
        A `Pipeline`: functions and variables. Safety checkers are not loaded.

    Raises:
        ValueError: no such pipeline, a class that gen_jax does not have, missing or damaged parts, and what
            `load_model` refuses.
    """
    folder = resolve_pipeline(path_or_id, variant=variant, **options)
    index = read_json(folder / 'model_index.json')
    kind = index.get('_class_name')
    if kind not in CLASSES:
        raise ValueError(f'{folder / "model_index.json"}: gen_jax has no pipeline {kind!r}; it has '
                         f'{", ".join(CLASSES)}')
    found = parts_of(folder)
    missing = [name for name in ('unet', 'vae', 'scheduler') if name not in found]
    missing += [] if any(name.startswith('text_encoder') for name in found) else ['text_encoder']
    if missing:
        raise ValueError(f'{folder / "model_index.json"} names no {" and no ".join(missing)}')
    variables, loaded = {}, {}
    for name in ('unet', 'vae', 'text_encoder', 'text_encoder_2'):
        if name in found:
            part = open_model(folder, name, variant)
            upcast = (name == 'vae' and dtype is not None and jnp.dtype(dtype) == jnp.float16
                      and getattr(part.module, 'force_upcast', False))
            loaded[name], variables[name] = part.load(None if upcast else dtype, place)
    encoders = tuple(TextEncoder(name, loaded[name], ClipTokenizer.from_files(
        folder / name.replace('text_encoder', 'tokenizer'))) for name in loaded if name.startswith('text_encoder'))
    networks = Networks(loaded['unet'], loaded['vae'], encoders, CLASSES[kind])
    return make_pipeline(networks, variables, read_scheduler_config(folder), index, str(folder))


def save_pipeline(pipeline: Pipeline, folder, variables: Mapping | None = None, dtype=None) -> Path:
    """Writes a folder that `load_pipeline` and diffusers load.

    Args:
        pipeline: loaded from a folder, whose tokenizers are copied.
        folder: to be made; must not hold a pipeline yet.
        variables: in place of the pipeline's own, for instance after fine-tuning.
        dtype: of the weights on disk; None keeps theirs.

    Raises:
        ValueError: the folder holds a pipeline already; a pipeline without a source.
    """
    folder = Path(folder)
    if (folder / 'model_index.json').exists():
        raise ValueError(f'{folder} holds a pipeline already; name another folder, or remove it')
    if pipeline.source is None:
        raise ValueError('this pipeline was not loaded from a folder, so its tokenizers cannot be copied')
    variables = pipeline.variables if variables is None else variables
    for name, module in modules(pipeline.networks).items():
        save_model(module, variables[name], folder / name, dtype=dtype)
    for encoder in pipeline.networks.text_encoders:
        name = encoder.name.replace('text_encoder', 'tokenizer')
        shutil.copytree(Path(pipeline.source) / name, folder / name, dirs_exist_ok=True)
    save_scheduler(pipeline.scheduler, folder / 'scheduler')
    index = {k: ([None, None] if k in UNUSED else v) for k, v in pipeline.index.items()}
    write_json(folder / 'model_index.json', index)  # last: with it the folder is complete
    return folder
