"""CLIP's networks as checkpoints on the hub describe them: the fields of config.json, and what they mean.

Radford et al. 2021, https://arxiv.org/abs/2103.00020, and OpenCLIP (Cherti et al. 2023, https://arxiv.org/abs/2212.07143).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.models.clip import CLIP
from gen_jax.models.clip_towers import TextModel, TowerOutput, VisionModel
from gen_jax.types import Array

__all__ = ['CLIPTextModel', 'CLIPTextModelWithProjection', 'CLIPVisionModel', 'CLIPVisionModelWithProjection',
           'CLIP_CLASSES', 'clip_config', 'clip_from_config', 'clip_text_sd15', 'clip_text_sd21', 'clip_text_sdxl',
           'clip_text_sdxl_2']

_ARGMAX = 2  # the eos_token_id of configurations that mean the largest id, see `TextModel`


def _float32(output: TowerOutput, embeds: Array | None = None) -> TowerOutput:
    states = tuple(x.astype(jnp.float32) for x in output.hidden_states)
    embeds = None if embeds is None else embeds.astype(jnp.float32)
    return TowerOutput(output.last_hidden_state.astype(jnp.float32), output.pooler_output.astype(jnp.float32), states,
                       embeds)


def _projection(features: int, width: int, dtype) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=nn.initializers.normal(width**-0.5))


class CLIPTextModel(nn.Module):
    """The text tower, keys `text_model.*`: token ids int [B, L] -> `TowerOutput` in float32.

    Attributes:
        eos_token_id: the pooled token is the first of this id; 2 means the one of the largest id instead, as in the
            published configurations of before that field was corrected (Stable Diffusion's among them).
        dtype: compute dtype; parameters, norms, softmax and outputs are float32.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        The others are the fields of the published config.json.

    Example:
        >>> tower = CLIPTextModel(vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2)
        >>> tokens = jnp.zeros((1, 5), jnp.int32)
        >>> variables = tower.init(jax.random.key(0), tokens)
        >>> tower.apply(variables, tokens).last_hidden_state.shape
        (1, 5, 8)
        >>> tower.apply(variables, tokens, skip=1, final_norm=False, method='layer_state').shape
        (1, 5, 8)
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    dtype: Any = jnp.float32
    remat: str = ''
    attention_implementation: str | None = None

    def setup(self):
        eos = None if self.eos_token_id == _ARGMAX else self.eos_token_id
        self.text_model = TextModel(
            self.vocab_size, self.max_position_embeddings, self.hidden_size, self.num_hidden_layers,
            self.num_attention_heads, self.intermediate_size, eos, self.hidden_act, self.dtype, self.remat,
            self.layer_norm_eps, self.attention_implementation)

    def __call__(self, input_ids: Array, attention_mask: Array | None = None,
                 output_hidden_states: bool = False) -> TowerOutput:
        """Token ids int [B, L], L <= max_position_embeddings; attention_mask [B, L], 0 where no token may look."""
        return _float32(self.text_model(input_ids, attention_mask, output_hidden_states))

    def layer_state(self, input_ids: Array, skip: int = 0, final_norm: bool = True,
                    attention_mask: Array | None = None) -> Array:
        """The state `skip` layers before the last one's, float32 [B, L, C]; see `TextModel.layer_state`."""
        return self.text_model.layer_state(input_ids, skip, final_norm, attention_mask).astype(jnp.float32)


class CLIPTextModelWithProjection(CLIPTextModel):
    """`CLIPTextModel` and `text_projection`: the output's `embeds` are float32 [B, projection_dim]."""

    projection_dim: int = 512

    def setup(self):
        super().setup()
        self.text_projection = _projection(self.projection_dim, self.hidden_size, self.dtype)

    def __call__(self, input_ids: Array, attention_mask: Array | None = None,
                 output_hidden_states: bool = False) -> TowerOutput:
        """As `CLIPTextModel`."""
        output = self.text_model(input_ids, attention_mask, output_hidden_states)
        return _float32(output, self.text_projection(output.pooler_output))


class CLIPVisionModel(nn.Module):
    """The image tower, keys `vision_model.*`: images [B, S, S, 3], standardised -> `TowerOutput` in float32.

    Attributes: the fields of the published config.json and those of `CLIPTextModel`.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = 'quick_gelu'
    layer_norm_eps: float = 1e-5
    dtype: Any = jnp.float32
    remat: str = ''
    attention_implementation: str | None = None

    def setup(self):
        if self.num_channels != 3:
            raise ValueError(f'num_channels = {self.num_channels}, but CLIP reads images of 3 channels')
        self.vision_model = VisionModel(
            self.image_size, self.patch_size, self.hidden_size, self.num_hidden_layers, self.num_attention_heads,
            self.intermediate_size, (), self.hidden_act, self.dtype, self.remat, self.layer_norm_eps,
            self.attention_implementation)

    def __call__(self, pixel_values: Array, output_hidden_states: bool = False) -> TowerOutput:
        """Images float [B, image_size, image_size, 3], standardised with the checkpoint's mean and deviation."""
        return _float32(self.vision_model(pixel_values, output_hidden_states))


class CLIPVisionModelWithProjection(CLIPVisionModel):
    """`CLIPVisionModel` and `visual_projection`: the output's `embeds` are float32 [B, projection_dim]."""

    projection_dim: int = 512

    def setup(self):
        super().setup()
        self.visual_projection = _projection(self.projection_dim, self.hidden_size, self.dtype)

    def __call__(self, pixel_values: Array, output_hidden_states: bool = False) -> TowerOutput:
        """As `CLIPVisionModel`."""
        output = self.vision_model(pixel_values, output_hidden_states)
        return _float32(output, self.visual_projection(output.pooler_output))


CLIP_CLASSES = {
    'CLIPModel': CLIP,
    'CLIPTextModel': CLIPTextModel,
    'CLIPTextModelWithProjection': CLIPTextModelWithProjection,
    'CLIPVisionModel': CLIPVisionModel,
    'CLIPVisionModelWithProjection': CLIPVisionModelWithProjection,
}
"""Published class name -> our module."""

_OURS = ('dtype', 'remat', 'attention_implementation', 'parent', 'name')


def _fields(cls) -> dict[str, Any]:
    """The published fields of a tower and their defaults."""
    return {f.name: f.default for f in dataclasses.fields(cls) if f.name not in _OURS}


def _section(config: Mapping[str, Any], tower: str) -> Mapping[str, Any]:
    """The part of a whole CLIP's config that describes one tower; '..._config_dict', where given, replaces it."""
    old = config.get(f'{tower}_config_dict')
    return (config.get(f'{tower}_config') or {}) if old is None else old


def _tower_fields(cls, config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get('attention_dropout'):
        raise ValueError(f'attention_dropout = {config["attention_dropout"]} is not implemented; every published CLIP '
                         'has 0.0')
    fields = {**_fields(cls), **{k: config[k] for k in _fields(cls) if config.get(k) is not None}}
    for key in ('image_size', 'patch_size'):
        if isinstance(fields.get(key), list | tuple):
            if len(set(fields[key])) != 1:
                raise ValueError(f'{key} = {fields[key]}: images and patches must be square')
            fields[key] = fields[key][0]
    if not isinstance(fields.get('eos_token_id', 0), int):
        raise ValueError(f'eos_token_id = {fields["eos_token_id"]} must be one integer')
    return fields


def clip_from_config(class_name: str, config: Mapping[str, Any], **kwargs) -> nn.Module:
    """The network that a published config.json describes.

    Args:
        class_name: one of `CLIP_CLASSES`, as `architectures` of a config or a pipeline's model_index.json says.
        config: the contents of config.json. The towers also take a whole CLIP's config and read their section of it.
            Fields that no computation depends on are passed over; those that are missing have the published defaults.
        kwargs: further fields of the module, such as dtype, remat, attention_implementation; for `CLIP` also
            pixel_mean and pixel_std.

    Raises:
        ValueError: unknown class; a field that asks for what is not implemented.
    """
    if class_name not in CLIP_CLASSES:
        raise ValueError(f'unknown CLIP class {class_name!r}; choose from {", ".join(CLIP_CLASSES)}')
    if class_name != 'CLIPModel':
        cls = CLIP_CLASSES[class_name]
        tower = 'text' if issubclass(cls, CLIPTextModel) else 'vision'
        if f'{tower}_config' in config or f'{tower}_config_dict' in config:
            config = _section(config, tower)
        return cls(**{**_tower_fields(cls, config), **kwargs})
    text = _tower_fields(CLIPTextModel, _section(config, 'text'))
    vision = _tower_fields(CLIPVisionModel, _section(config, 'vision'))
    if vision['num_channels'] != 3:
        raise ValueError(f'num_channels = {vision["num_channels"]}, but CLIP reads images of 3 channels')
    for key in ('hidden_act', 'layer_norm_eps'):
        if text[key] != vision[key]:
            raise ValueError(f'{key} is {text[key]!r} in the text tower and {vision[key]!r} in the image tower; '
                             'they must be equal')
    fields = {ours: vision[key] for ours, key in _VISION.items()} | {ours: text[key] for ours, key in _TEXT.items()}
    fields['eos_token_id'] = None if text['eos_token_id'] == _ARGMAX else text['eos_token_id']
    fields['projection_dim'] = config.get('projection_dim', 512)
    fields['logit_scale_init'] = config.get('logit_scale_init_value', 2.6592)
    return CLIP(**{**fields, **kwargs})


# Fields of `CLIP` and of the section of the published config that they come from.
_VISION = {'image_size': 'image_size', 'patch_size': 'patch_size', 'vision_width': 'hidden_size',
           'vision_layers': 'num_hidden_layers', 'vision_heads': 'num_attention_heads',
           'vision_hidden': 'intermediate_size', 'act': 'hidden_act', 'layer_norm_eps': 'layer_norm_eps'}
_TEXT = {'vocab_size': 'vocab_size', 'max_length': 'max_position_embeddings', 'text_width': 'hidden_size',
         'text_layers': 'num_hidden_layers', 'text_heads': 'num_attention_heads', 'text_hidden': 'intermediate_size',
         'act': 'hidden_act', 'layer_norm_eps': 'layer_norm_eps'}


def clip_config(module: nn.Module) -> dict[str, Any]:
    """The config.json of a module of `CLIP_CLASSES`: the inverse of `clip_from_config`.

    pixel_mean and pixel_std of a `CLIP` are no part of it; they belong into preprocessor_config.json.

    Raises:
        ValueError: another module; a network that the published classes cannot express (a convolutional stem, or an
            end token of id 2, which they read as the largest id).
    """
    names = {cls: name for name, cls in CLIP_CLASSES.items()}
    if type(module) not in names:
        raise ValueError(f'{type(module).__name__} is none of the CLIP classes {", ".join(CLIP_CLASSES)}')
    head = {'architectures': [names[type(module)]]}
    if not isinstance(module, CLIP):
        kind = 'clip_text_model' if isinstance(module, CLIPTextModel) else 'clip_vision_model'
        return {**head, 'model_type': kind, **{k: getattr(module, k) for k in _fields(type(module))}}
    if module.stem:
        raise ValueError(f'stem = {module.stem}: published CLIP classes have no convolutional stem')
    if module.eos_token_id == _ARGMAX:
        raise ValueError('eos_token_id = 2 means the largest token id in published configurations; use another id')
    eos = _ARGMAX if module.eos_token_id is None else module.eos_token_id
    text = {key: getattr(module, ours) for ours, key in _TEXT.items()}
    vision = {key: getattr(module, ours) for ours, key in _VISION.items()}
    return {
        **head, 'model_type': 'clip', 'projection_dim': module.projection_dim,
        'logit_scale_init_value': module.logit_scale_init,
        'text_config': {'model_type': 'clip_text_model', **text, 'eos_token_id': eos,
                        'projection_dim': module.projection_dim},
        'vision_config': {'model_type': 'clip_vision_model', **vision, 'num_channels': 3,
                          'projection_dim': module.projection_dim},
    }


def clip_text_sd15(**kwargs) -> CLIPTextModel:
    """The text tower of CLIP ViT-L/14, which Stable Diffusion 1.x conditions on: 123,060,480 parameters."""
    defaults = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=_ARGMAX)
    return CLIPTextModel(**{**defaults, **kwargs})


def clip_text_sd21(**kwargs) -> CLIPTextModel:
    """Stable Diffusion 2.x: the first 23 of the 24 layers of OpenCLIP ViT-H/14's text tower, 340,387,840 parameters."""
    defaults = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                    hidden_act='gelu', eos_token_id=_ARGMAX)
    return CLIPTextModel(**{**defaults, **kwargs})


def clip_text_sdxl(**kwargs) -> CLIPTextModel:
    """SDXL's first text tower, the same as Stable Diffusion 1.x's: 123,060,480 parameters."""
    return clip_text_sd15(**kwargs)


def clip_text_sdxl_2(**kwargs) -> CLIPTextModelWithProjection:
    """SDXL's second text tower, that of OpenCLIP ViT-bigG/14: 694,659,840 parameters."""
    defaults = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
                    hidden_act='gelu', eos_token_id=_ARGMAX, projection_dim=1280)
    return CLIPTextModelWithProjection(**{**defaults, **kwargs})
