"""The naming rule is a bijection, and a state dict that does not fit is explained whole."""

import chex
import jax
import numpy as np
import pytest

from gen_jax.interop.torch_layout import from_torch, to_torch, torch_key

RNG = np.random.RandomState(0)
PARAMS = {
    'down_blocks.0': {
        'resnets.0': {'conv1': {'kernel': RNG.randn(3, 3, 4, 5), 'bias': RNG.randn(5)}},
        'attentions.0': {'to_out.0': {'kernel': RNG.randn(4, 6)}, 'group_norm': {'scale': RNG.randn(4)}},
    },
    'class_embedding': {'embedding': RNG.randn(11, 4)},
    'conv1d': {'kernel': RNG.randn(7, 2, 3)},
    'logit_scale': np.float32(1.5),
}


def test_keys_and_layouts():
    state_dict = to_torch(PARAMS)
    assert {k: v.shape for k, v in state_dict.items()} == {
        'down_blocks.0.resnets.0.conv1.weight': (5, 4, 3, 3),
        'down_blocks.0.resnets.0.conv1.bias': (5,),
        'down_blocks.0.attentions.0.to_out.0.weight': (6, 4),
        'down_blocks.0.attentions.0.group_norm.weight': (4,),
        'class_embedding.weight': (11, 4),
        'conv1d.weight': (3, 2, 7),
        'logit_scale': (),
    }
    kernel = PARAMS['down_blocks.0']['resnets.0']['conv1']['kernel']
    assert state_dict['down_blocks.0.resnets.0.conv1.weight'][4, 3, 2, 1] == kernel[2, 1, 3, 4]
    assert all(v.flags['C_CONTIGUOUS'] for v in state_dict.values())
    assert torch_key(('a', 'linear_1', 'kernel')) == 'a.linear_1.weight'


def test_round_trip():
    chex.assert_trees_all_equal(from_torch(to_torch(PARAMS), PARAMS), PARAMS)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float16), PARAMS)
    assert {x.dtype for x in jax.tree.leaves(from_torch(to_torch(PARAMS), half))} == {np.dtype('float16')}


def test_buffers_are_ignored_only_if_asked_for():
    state_dict = {**to_torch(PARAMS), 'down_blocks.0.filter': np.ones(4)}
    chex.assert_trees_all_equal(from_torch(state_dict, PARAMS, ignore='[.]filter$'), PARAMS)
    with pytest.raises(ValueError, match="unexpected 'down_blocks.0.filter'"):
        from_torch(state_dict, PARAMS, ignore='^filter')


def test_one_error_lists_everything():
    state_dict = to_torch(PARAMS)
    state_dict['down_blocks.0.resnets.0.conv_1.weight'] = state_dict.pop('down_blocks.0.resnets.0.conv1.weight')
    state_dict['class_embedding.weight'] = np.zeros((12, 4))
    state_dict['zzz'] = np.zeros(1)
    with pytest.raises(ValueError) as info:
        from_torch(state_dict, PARAMS)
    message = str(info.value)
    assert '1 missing, 2 unexpected, 1 mis-shaped of 7 keys' in message
    assert "missing 'down_blocks.0.resnets.0.conv1.weight' (the file has 'down_blocks.0.resnets.0.conv_1" in message
    assert "unexpected 'down_blocks.0.resnets.0.conv_1.weight' (the model has 'down_blocks.0.resnets.0.conv1" in message
    assert "unexpected 'zzz'\n" in message
    assert "mis-shaped 'class_embedding.weight': the file has (12, 4), the model needs (11, 4)" in message


def test_a_transposed_square_kernel_is_not_guessed():
    params = {'to_q': {'kernel': np.arange(9.0).reshape(3, 3)}}
    chex.assert_trees_all_equal(to_torch(params)['to_q.weight'], params['to_q']['kernel'].T)


@pytest.mark.parametrize('params', [{'a': {'kernel': np.ones((1, 1)), 'scale': np.ones(1)}},
                                    {'a': {'b.c': {'bias': np.ones(1)}}, 'a.b': {'c': {'bias': np.ones(1)}}}])
def test_colliding_keys_are_refused(params):
    with pytest.raises(ValueError, match='share the torch key'):
        to_torch(params)
