from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models.clip import CLIP, clip_shapes, clip_tiny
from gen_jax.models.clip_published import CLIP_CLASSES, CLIPTextModel, CLIPVisionModel, clip_config, clip_from_config
from tests.golden.draws import weight
from tests.golden.make_clip_towers import CASES, TEXT, VISION, inputs

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'clip_towers.npz')
IMAGE, TOKENS, MASK = inputs()


def arguments(class_name):
    """The positional inputs of a class, without the mask."""
    return {'CLIPModel': (IMAGE, TOKENS)}.get(class_name, (IMAGE,) if 'Vision' in class_name else (TOKENS,))


@pytest.fixture(scope='module')
def networks():
    """name -> (network, parameters)."""
    out = {}
    for name, (class_name, config) in CASES.items():
        network = clip_from_config(class_name, config)
        shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments(class_name))['params']
        wanted = to_torch(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
        out[name] = network, from_torch({k: weight(k, x.shape) for k, x in wanted.items()}, shapes)
    return out


def outputs(network, class_name, params):
    """variant -> what the golden file holds of it."""
    if class_name == 'CLIPModel':
        def run(params, *args):
            u, v, scale = network.apply({'params': params}, *args)
            return {'image_embeds': u, 'text_embeds': v, 'logits_per_image': jnp.exp(scale) * u @ v.T}
    else:
        def run(params, *args):
            y = network.apply({'params': params}, *args, output_hidden_states=True)
            embeds = {} if y.embeds is None else {'image_embeds' if 'Vision' in class_name else 'text_embeds': y.embeds}
            return {**embeds, 'last_hidden_state': y.last_hidden_state, 'pooler_output': y.pooler_output,
                    'hidden_states': jnp.stack(y.hidden_states)}
    args = arguments(class_name)
    variants = {'': args} if 'Vision' in class_name else {'': args, '_masked': (*args, MASK)}
    run = jax.jit(run)
    return {variant: run(params, *args) for variant, args in variants.items()}


def errors(name, network, params):
    """variant/key -> largest difference from the golden value over the golden's scale."""
    found = {}
    for variant, ours in outputs(network, CASES[name][0], params).items():
        for key, value in ours.items():
            golden = GOLDEN.get(f'{name}{variant}/{key}')
            if golden is not None:
                found[variant + key] = np.abs(value - golden).max() / np.abs(golden).max()
    return found


@pytest.mark.parametrize('name', CASES)
def test_golden_parity_of_every_layer(networks, name):
    network, params = networks[name]
    assert sorted(to_torch(params)) == list(GOLDEN[f'{name}/keys'])
    found = errors(name, network, params)
    assert max(found.values()) < 1e-4, found
    wanted = [k for k in GOLDEN.files if k.startswith((f'{name}/', f'{name}_masked/')) and not k.endswith('/keys')]
    assert len(found) == len(wanted)


def test_the_goldens_tell_the_variants_apart():
    """Masks, pooling and layers matter in the golden numbers, so agreement with them says something."""
    assert np.abs(GOLDEN['text/hidden_states'] - GOLDEN['text_masked/hidden_states'])[-1, 1].max() > 1e-2
    ends, largest = (TOKENS == 7).argmax(-1), TOKENS.argmax(-1)
    assert (ends != largest).any()
    rows = np.arange(len(TOKENS))
    np.testing.assert_array_equal(GOLDEN['text/pooler_output'], GOLDEN['text/last_hidden_state'][rows, largest])
    assert np.abs(np.diff(GOLDEN['text/hidden_states'], axis=0)).max((1, 2, 3)).min() > 0.1


@pytest.mark.parametrize('path', ['text_model/encoder/layers.2/self_attn/k_proj/kernel', 'text_projection/kernel'])
def test_a_permuted_weight_breaks_parity(networks, path):
    network, params = networks['text_projection']
    permuted = trees.map_with_path(lambda p, x: x[::-1] if p == path else x, params)
    assert errors('text_projection', network, permuted)['text_embeds'] > 1e-2


def test_layer_states_of_stable_diffusion(networks):
    network, params = networks['text']
    states, scale = GOLDEN['text/hidden_states'], params['text_model']['final_layer_norm']

    def normalised(x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + TEXT['layer_norm_eps'])
        return x * scale['scale'] + scale['bias']

    cases = [({}, GOLDEN['text/last_hidden_state']), ({'skip': 1}, normalised(states[-2])),
             ({'skip': 1, 'final_norm': False}, states[-2]),
             ({'skip': 1, 'final_norm': False, 'attention_mask': MASK}, GOLDEN['text_masked/hidden_states'][-2])]
    run = jax.jit(lambda p: [network.apply({'params': p}, TOKENS, **kwargs, method='layer_state')
                             for kwargs, _ in cases])
    for ours, (kwargs, golden) in zip(run(params), cases, strict=True):
        np.testing.assert_allclose(ours, golden, atol=1e-4, err_msg=str(kwargs))
    for skip in (-1, 4):
        with pytest.raises(ValueError, match=f'skip = {skip} leaves none of the 3 layers'):
            network.apply({'params': params}, TOKENS, skip=skip, method='layer_state')


def test_a_tower_reads_its_section_of_a_whole_config():
    whole = {'text_config': TEXT, 'vision_config': {'hidden_size': 999}, 'vision_config_dict': VISION,
             'projection_dim': 12, 'logit_scale_init_value': 4.0, 'transformers_version': '4.21'}
    assert clip_from_config('CLIPTextModel', whole) == clip_from_config('CLIPTextModel', TEXT)
    assert clip_from_config('CLIPVisionModel', whole) == clip_from_config('CLIPVisionModel', VISION)
    clip = clip_from_config('CLIPModel', whole, dtype=jnp.bfloat16)
    assert (clip.vision_width, clip.projection_dim, clip.logit_scale_init) == (24, 12, 4.0)
    assert clip.eos_token_id is None and clip.dtype == jnp.bfloat16
    assert clip_from_config('CLIPTextModel', {}) == CLIPTextModel()
    assert clip_from_config('CLIPVisionModel', {'image_size': [48, 48]}).image_size == 48


@pytest.mark.parametrize('name', CASES)
def test_config_round_trip(networks, name):
    network, _ = networks[name]
    config = clip_config(network)
    assert config['architectures'] == [CASES[name][0]]
    assert clip_from_config(CASES[name][0], config) == network


@pytest.mark.parametrize('class_name, config, message', [
    ('CLIPSegModel', {}, "unknown CLIP class 'CLIPSegModel'; choose from CLIPModel"),
    ('CLIPTextModel', {'attention_dropout': 0.1}, 'attention_dropout = 0.1 is not implemented'),
    ('CLIPTextModel', {'eos_token_id': [2, 7]}, r'eos_token_id = \[2, 7\] must be one integer'),
    ('CLIPVisionModel', {'image_size': (224, 336)}, r'image_size = \(224, 336\): images and patches must be square'),
    ('CLIPModel', {'text_config': {'hidden_act': 'gelu'}}, "hidden_act is 'gelu' in the text tower and 'quick_gelu'"),
    ('CLIPModel', {'vision_config': {'num_channels': 1}}, 'num_channels = 1, but CLIP reads images of 3 channels'),
])
def test_what_a_config_cannot_say(class_name, config, message):
    with pytest.raises(ValueError, match=message):
        clip_from_config(class_name, config)


def test_what_has_no_published_config():
    for network, message in [(clip_shapes(), 'stem'), (clip_tiny(eos_token_id=2), 'eos_token_id = 2'),
                             (CLIP_CLASSES, 'dict is none of the CLIP classes')]:
        with pytest.raises(ValueError, match=message):
            clip_config(network)
    assert isinstance(clip_from_config('CLIPModel', clip_config(clip_tiny())), CLIP)


def test_wrong_inputs():
    tokens = jnp.zeros((2, 5), jnp.int32)
    with pytest.raises(ValueError, match=r'attention_mask has shape \(2, 4\) but tokens \(2, 5\)'):
        jax.eval_shape(CLIPTextModel().init, jax.random.key(0), tokens, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match='num_channels = 4'):
        jax.eval_shape(CLIPVisionModel(num_channels=4).init, jax.random.key(0), jnp.zeros((1, 224, 224, 4)))


def test_sixteen_bits_compute_and_float32_comes_out(networks):
    _, params = networks['text_projection']
    network = clip_from_config(*CASES['text_projection'], dtype=jnp.bfloat16, attention_implementation='xla')
    y = jax.jit(lambda p: network.apply({'params': p}, TOKENS, output_hidden_states=True))(params)
    assert {x.dtype for x in jax.tree.leaves(y)} == {jnp.dtype('float32')}
    np.testing.assert_allclose(y.embeds, GOLDEN['text_projection/text_embeds'], atol=0.1)
    assert np.abs(y.embeds - GOLDEN['text_projection/text_embeds']).max() > 1e-5
