"""Published classes and our modules: one row each, from config.json to a network and back.

The names of parameters need no table (`gen_jax.interop.torch_layout`); what needs one is what a config says of the
network, and the few keys that older files spell otherwise.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.interop.torch_layout import flatten, torch_shape
from gen_jax.models.autoencoder_kl import AutoencoderKL
from gen_jax.models.clip_published import CLIP_CLASSES, clip_config, clip_from_config
from gen_jax.models.unet import UNet2D
from gen_jax.models.unet_condition import FIXED, UNet2DCondition
from gen_jax.types import PyTree

__all__ = ['BUFFERS', 'CLASSES', 'Published', 'abstract_params', 'adapt', 'class_of', 'module_from', 'published_name']

BUFFERS = r'(^|\.)position_ids$'
"""Keys that are no parameters: the numbers 0, 1, 2 ..."""
OURS = ('dtype', 'attention_implementation', 'remat', 'parent', 'name')
"""Fields of a module that say how it computes, not what; no config has them."""


class Published(NamedTuple):
    """One published class."""

    module: type[nn.Module]
    library: str
    """'diffusers' or 'transformers': how its files are called."""
    build: Callable[..., nn.Module]
    """(config, **fields of ours) -> the network; ValueError for what it does not have."""
    config: Callable[[nn.Module], dict[str, Any]]
    """The network -> its config.json."""
    example: Callable[[nn.Module], tuple]
    """The network -> arguments of its `init`."""


def _plain(value):
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def _refuse_unknown(name: str, unknown: Mapping[str, Any], known) -> None:
    if unknown:
        listed = []
        for key, value in unknown.items():
            near = difflib.get_close_matches(key, list(known), 1)
            listed.append(f'{key}={value!r}' + (f' (did you mean {near[0]!r}?)' if near else ''))
        raise ValueError(f'the config of {name} asks for what gen_jax does not have: {", ".join(listed)}; the weights '
                         'would compute something else here')


def _from_fields(cls, name: str, fixed: Mapping[str, Any], idle: tuple[str, ...], config: Mapping[str, Any], **ours):
    """A module whose fields are the config's; `fixed` may stand there at one value, `idle` at any."""
    fields = {f.name for f in dataclasses.fields(cls)} - set(OURS)
    given = {k: _plain(v) for k, v in config.items() if not k.startswith('_') and k not in idle}
    unknown = {k: v for k, v in given.items() if k not in fields and not (k in fixed and v == _plain(fixed[k]))}
    _refuse_unknown(name, unknown, fields)
    return cls(**{k: v for k, v in given.items() if k in fields}, **ours)


def _to_fields(name: str, hidden: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The config of such a module; `hidden` fields are ours and can be exported at one value only."""
    fields = {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.name not in OURS}
    return {'_class_name': name, **{k: v for k, v in fields.items() if k not in hidden}}


def _labels(unet, embed_dim: int):
    if not unet.class_conditional:
        return None
    kind = unet.class_embed_type
    if kind in ('identity', 'projection'):
        return jnp.zeros((1, embed_dim if kind == 'identity' else unet.projection_class_embeddings_input_dim))
    return jnp.zeros(1, jnp.float32 if kind == 'timestep' else jnp.int32)


def _image(network) -> jax.Array:
    side = network.downsampling_factor
    return jnp.zeros((1, side, side, network.in_channels))


def _unet_2d(unet: UNet2D) -> tuple:
    t = jnp.ones(1, jnp.int32 if unet.time_embedding_type == 'learned' else jnp.float32)
    return _image(unet), t, _labels(unet, unet.time_embedding_dim or 4 * unet.block_out_channels[0])


def _unet_condition(unet: UNet2DCondition) -> tuple:
    width = unet.cross_attention_dim
    added = None
    if unet.addition_embed_type == 'text_time':
        # Any split of the projection's input into numbers and a text will do: six numbers, as SDXL, or five.
        count = 6 if unet.projection_class_embeddings_input_dim > 6 * unet.addition_time_embed_dim else 1
        rest = unet.projection_class_embeddings_input_dim - count * unet.addition_time_embed_dim
        added = {'text_embeds': jnp.zeros((1, rest)), 'time_ids': jnp.zeros((1, count))}
    guidance = unet.time_cond_proj_dim and jnp.zeros((1, unet.time_cond_proj_dim))
    text = jnp.zeros((1, 1, width[0] if isinstance(width, tuple) else width))
    return _image(unet), jnp.ones(1), text, added, _labels(unet, unet.embed_dim), None, guidance


def _clip(module) -> tuple:
    tokens = (jnp.zeros((1, 1), jnp.int32),)
    side = getattr(module, 'image_size', 0)
    image = (jnp.zeros((1, side, side, 3)),)
    return tokens if not side else image if not hasattr(module, 'text_width') else image + tokens


TRANSFORMERS_IDLE = frozenset(
    'add_cross_attention architectures bad_words_ids begin_suppress_tokens '
    'bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty '
    'do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty '
    'finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_factor initializer_range '
    'is_composition is_decoder is_encoder_decoder label2id length_penalty max_length min_length model_type '
    'no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states '
    'output_scores pad_token_id prefix problem_type projection_dim pruned_heads remove_invalid_values '
    'repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params '
    'temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype '
    'torchscript transformers_version typical_p use_bfloat16 use_cache gradient_checkpointing'.split())
"""Fields that every config of transformers may have and that say nothing about CLIP's networks."""
CLIP_FIXED = {'dropout': 0.0, 'attention_dropout': 0.0}


def _clip_build(name: str, config: Mapping[str, Any], **ours) -> nn.Module:
    towers = {t: config.get(f'{t}_config_dict') or config.get(f'{t}_config') for t in ('text', 'vision')}
    own = {'logit_scale_init_value', *(f'{t}_config{end}' for t in towers for end in ('', '_dict'))}
    sections = [towers[t] for t in towers if towers[t]] or [config]
    known = {f.name for cls in CLIP_CLASSES.values() for f in dataclasses.fields(cls)} | TRANSFORMERS_IDLE
    for section in [*sections, config]:
        extra = own if section is config else set()
        _refuse_unknown(name, {k: v for k, v in section.items() if not k.startswith('_') and k not in known | extra
                               and not (k in CLIP_FIXED and v == CLIP_FIXED[k])}, known)
    return clip_from_config(name, config, **ours)


def _clip_config(module: nn.Module) -> dict[str, Any]:
    """The config.json, without the published vocabulary's start token where the vocabulary is another one."""
    config = clip_config(module)
    for section in (config, config.get('text_config', {})):
        if section.get('vocab_size', 49408) <= 49406:
            section['bos_token_id'] = None
    return config


def _row(cls, name: str, example, fixed=None, idle=(), hidden=None) -> Published:
    return Published(cls, 'diffusers', partial(_from_fields, cls, name, {**(fixed or {}), **(hidden or {})}, idle),
                     partial(_to_fields, name, hidden or {}), example)


CLASSES: dict[str, Published] = {
    'UNet2DModel': _row(UNet2D, 'UNet2DModel', _unet_2d),
    'UNet2DConditionModel': _row(UNet2DCondition, 'UNet2DConditionModel', _unet_condition, FIXED,
                                 ('addition_embed_type_num_heads', 'mid_block_only_cross_attention')),
    # Dropout is no field of the published class: it says how to train, and pictures are made without.
    'AutoencoderKL': _row(AutoencoderKL, 'AutoencoderKL', lambda vae: (_image(vae),), hidden={'dropout': 0.0}),
    **{name: Published(cls, 'transformers', partial(_clip_build, name), _clip_config, _clip)
       for name, cls in CLIP_CLASSES.items()},
}
"""By the name in `_class_name` (diffusers) or `architectures` (transformers)."""


def published_name(config: Mapping[str, Any], where) -> str:
    """The class that a config.json names.

    Args:
        where: the file, for errors.

    Raises:
        ValueError: none, or one that is not in `CLASSES`.
    """
    name = config.get('_class_name') or (config.get('architectures') or [None])[0]
    if name in CLASSES:
        return name
    near = difflib.get_close_matches(str(name), list(CLASSES), 1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    said = f'is of the class {name!r}, which gen_jax does not have{hint}' if name else 'names no class'
    raise ValueError(f'{where} {said} (_class_name or architectures); it has {", ".join(CLASSES)}')


def module_from(config: Mapping[str, Any], where='the config', **ours) -> nn.Module:
    """The network that a config.json describes.

    Args:
        ours: fields of the module that no config has: dtype, remat, attention_implementation.

    Raises:
        ValueError: unknown class; fields that the network does not have, all of them listed.
    """
    return CLASSES[published_name(config, where)].build(config, **ours)


def class_of(module: nn.Module) -> str:
    """The published name of a module's class; ValueError if it has none."""
    for name, row in CLASSES.items():
        if type(module) is row.module:
            return name
    raise ValueError(f'{type(module).__name__} is no published class; gen_jax exports '
                     f'{", ".join(sorted({r.module.__name__ for r in CLASSES.values()}))}')


def abstract_params(module: nn.Module) -> PyTree:
    """The parameters of a module as `jax.ShapeDtypeStruct`s; nothing is computed."""
    try:
        hash(module)
    except TypeError:  # lists among its fields
        return _abstract_params.__wrapped__(module)
    return _abstract_params(module)


@lru_cache(maxsize=16)
def _abstract_params(module: nn.Module) -> PyTree:
    example = CLASSES[class_of(module)].example(module)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *example))['params']


OLD_ATTENTION = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}
"""Names of before diffusers 0.15; some published files still have them."""


def adapt(tensors: Mapping[str, np.ndarray], params: PyTree) -> dict[str, np.ndarray]:
    """Tensors of a file under the model's keys and shapes, where they are spelt otherwise but mean the same.

    The old names of attention; `text_model.` and `vision_model.` in front or not; a linear map stored as a 1x1
    convolution, or the reverse. What is not understood stays as it is, for `from_torch` to report.
    """
    wanted = {key: torch_shape(path, leaf.shape) for key, (path, leaf) in flatten(params).items()}
    out = {}
    for key, value in tensors.items():
        name = next((k for k in _spellings(key) if k in wanted and (k == key or k not in tensors)), key)
        shape = wanted.get(name, value.shape)
        if value.shape != shape and _without_units(value.shape) == _without_units(shape):
            value = value.reshape(shape)
        out[name] = value
    return out


def _spellings(key: str):
    yield key
    *front, last, leaf = key.rsplit('.', 2)
    if front and last in OLD_ATTENTION:
        yield f'{front[0]}.{OLD_ATTENTION[last]}.{leaf}'
    for prefix in ('text_model.', 'vision_model.'):
        yield prefix + key


def _without_units(shape: tuple[int, ...]) -> str:
    return re.sub(r'(,1)+$', '', ','.join(map(str, shape)))
