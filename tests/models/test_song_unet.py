"""DDPM++, NCSN++, SongUNet and DhariwalUNet against recorded outputs of both code bases, and every error."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models import SongUNet, edm_adm_digits, ncsnpp_digits, songunet_digits
from tests.golden import make_edm, make_score_sde
from tests.golden.draws import weight

GOLDEN = {kind: np.load(Path(__file__).parents[1] / 'golden' / f'{kind}.npz') for kind in ('edm', 'score_sde')}
SMALL = dict(img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
FIR, FOURIER = (1, 3, 3, 1), dict(embedding_type='fourier', channel_mult_noise=2)
DHARIWAL = dict(layout='dhariwal', adaptive_scale=True, skip_rescale=False, resample_proj=False,
                decoder_attention='every', channels_per_head=64)
VE = dict(layout='score_sde', num_scales=10, resample_filter=FIR, scale_by_sigma=True, center_input_sample=True)
CASES = {
    'edm ddpmpp': dict(SMALL, label_dim=3, augment_dim=5),
    'edm ncsnpp': dict(
        SMALL, channel_mult=(1, 2, 3), num_blocks=2, **FOURIER, encoder_type='residual', resample_filter=FIR),
    'edm skips': dict(
        SMALL, encoder_type='skip', decoder_type='skip', resample_filter=FIR, out_channels=2, augment_dim=5),
    'edm residual_means': dict(SMALL, encoder_type='residual', label_dim=3, in_channels=1, out_channels=1),
    'edm adm': dict(SMALL, model_channels=64, channel_mult=(2, 1), label_dim=3, augment_dim=5, **DHARIWAL),
    'score_sde ddpmpp': dict(SMALL, layout='score_sde'),
    'score_sde ncsnpp_ve': dict(
        SMALL, **VE, **FOURIER, channel_mult=(1, 2, 3), num_blocks=2, encoder_type='residual'),
    'score_sde ncsnpp_pyramids': dict(
        SMALL, **VE, **FOURIER, channel_mult=(1, 2, 2), encoder_type='skip', decoder_type='skip'),
    'score_sde ncsnpp_table': dict(SMALL, **VE, encoder_type='residual'),
    'score_sde ddpm': dict(
        SMALL, layout='score_sde', model_channels=32, resblock_type='ddpm', skip_rescale=False, num_groups=32,
        scale_by_sigma=True, num_scales=10, in_channels=1, out_channels=1),
}



def inputs(name):
    kind, case = name.split()
    return {'edm': make_edm, 'score_sde': make_score_sde}[kind].inputs(case)


def golden(name, what):
    kind, case = name.split()
    return GOLDEN[kind][f'{case}/{what}']


@functools.cache
def reference(name):
    """A case's network, its weights by torch key, its parameters, and the compiled forward."""
    unet = SongUNet(**CASES[name])
    state_dict = {key: weight(key, shape) for key, shape in json.loads(str(golden(name, 'shapes'))).items()}
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs(name)))['params']
    forward = jax.jit(lambda params, given: unet.apply({'params': params}, **given))
    return unet, state_dict, from_torch(state_dict, shapes), forward


def error(y, name):
    """The largest error over the reference's largest value, of the worst image."""
    y, expected = np.asarray(y), golden(name, 'y')
    assert y.shape == expected.shape
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(y, expected, strict=True))


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_reference(name):
    _, state_dict, params, forward = reference(name)
    y = forward(params, inputs(name))
    assert y.dtype == jnp.float32
    assert error(y, name) < 1e-5
    chex.assert_trees_all_equal(to_torch(params), state_dict)
