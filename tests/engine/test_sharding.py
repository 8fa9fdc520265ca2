"""Meshes, rules and presets: what every device holds, and that the layout changes nothing but that."""

import os
import platform
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import models, trees
from gen_jax.config import base_config
from gen_jax.engine import sharding
from gen_jax.engine.parallel import make_runner
from gen_jax.engine.update import init_state
from gen_jax.nn.transformer import Encoder
from gen_jax.types import Objective, System

WIDTH, TOKENS, EMA = 32, 4, {'slow': {'decay': 0.9}}


class Net(nn.Module):
    """One transformer block and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(WIDTH, name='head')(Encoder(1, 4, 2 * WIDTH, name='encoder')(x))


def transformer() -> System:
    """Predicts its input from a noisy one: noise per example, adam, an average."""
    def init(key, batch):
        return {'net': Net().init(key, batch['x'][:1])['params']}, {}

    def loss(params, state, batch, noise):
        del state
        y = Net().apply({'params': params['net']}, batch['x'] + noise.normal('x', batch['x']))
        return jnp.mean(jnp.square(y - batch['x'])), ({}, {})

    return System(init, {'fit': Objective(loss, ('net',), 'net')}, {}, {'net': optax.adam(1e-3)})


def batch_of(step=0, size=16):
    return {'x': np.random.default_rng(step).normal(size=(size, TOKENS, WIDTH)).astype(np.float32)}


def config_of(mesh, rules=('.*=',), accumulate=1, parallel='jit'):
    config = base_config()
    config.data.batch_size = 16
    config.train.mesh = {'data': 1, 'fsdp': 1, 'model': 1, **mesh}
    config.train.sharding, config.train.accumulate, config.train.parallel = rules, accumulate, parallel
    return config


def prepared(mesh, rules, accumulate=1):
    """(runner, abstract state, bytes of the arguments of the compiled update on one device)."""
    count = int(np.prod(list(mesh.values())))
    system = transformer()
    runner = make_runner(system, config_of(mesh, rules, accumulate), EMA, jax.devices()[:count])
    state = jax.eval_shape(lambda b: init_state(system, 0, b, EMA), batch_of())
    batch = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch_of().items()}
    memory = runner.trace(state, batch).lower().compile().memory_analysis()
    return runner, state, memory.argument_size_in_bytes


def losses(runner, steps=4):
    state, found = runner.place(init_state(transformer(), 0, batch_of(), EMA)), []
    for step in range(steps):
        state, metrics = runner.update(state, runner.put(batch_of(step)))
        found.append(float(metrics['fit/loss']))
    return state, found


@pytest.fixture(scope='module')
def alone():
    """The losses on one device."""
    return losses(prepared({'data': 1}, ('.*=',))[0])[1]


@pytest.mark.parametrize('mesh, rules, accumulate, share', [
    ({'fsdp': 2}, ('fsdp',), 1, 1 / 2),
    ({'fsdp': 4}, ('fsdp',), 2, 1 / 4),
    ({'data': 1, 'fsdp': 8}, ('fsdp',), 1, 1 / 8),
    ({'data': 2, 'fsdp': 2, 'model': 2}, ('fsdp', 'tensor'), 1, 1 / 3.6),
])
def test_presets_cut_the_state_and_keep_the_losses(alone, mesh, rules, accumulate, share):
    """FSDP: about 1/N of the state on every device as the compiler counts it; losses equal to rounding."""
    runner, abstract, measured = prepared(mesh, rules, accumulate)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    batch = batch_of()['x'].nbytes // sharding.batch_shards(runner.mesh)
    rows = sharding.placements(abstract, runner.state_shardings(abstract))
    table = sum(row.bytes for row in rows)
    assert abs(measured - table - batch) <= 64, 'the table says what the compiler counts (and the seed)'
    small = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract) if x.size < sharding.MIN_SIZE)
    assert small < 0.06 * whole and table - small <= share * whole
    state, found = losses(runner)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    kernel = state.params['net']['head']['kernel']
    assert kernel.sharding.spec == runner.state_shardings(abstract).params['net']['head']['kernel'].spec
    assert kernel.addressable_shards[0].data.size == kernel.size // mesh['fsdp']


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def mesh_of(**sizes):
    sizes = {axis: sizes.get(axis, 1) for axis in sharding.AXES}
    return sharding.make_mesh(sizes, jax.devices()[:int(np.prod(list(sizes.values())))])


def specs(tree, rules, **sizes):
    return {p: tuple(s.spec) for p, s in trees.flat(sharding.state_sharding(mesh_of(**sizes), tree, rules)).items()}


def test_fsdp_takes_the_largest_dimension_that_it_divides():
    tree = {'square': leaf(3, 3, 32, 32), 'wide': leaf(64, 32), 'odd': leaf(99, 32), 'never': leaf(33, 35),
            'small': leaf(1023), 'enough': leaf(1024), 'scalar': leaf()}
    found = specs(tree, ('fsdp',), fsdp=8)
    assert found == {'square': (None, None, None, 'fsdp'), 'wide': ('fsdp', None), 'odd': (None, 'fsdp'),
                     'never': (None, None), 'small': (None,), 'enough': ('fsdp',), 'scalar': ()}
    assert not any('fsdp' in s for s in specs(tree, ('fsdp',), data=8).values())
    # A rule in front wins; the preset takes the rest.
    mine = specs(tree, ('square=,,model', 'fsdp'), fsdp=2, model=2)
    assert mine['square'] == (None, None, 'model') and mine['wide'] == ('fsdp', None)
    rows = {r.path: r for r in sharding.placements(tree, sharding.state_sharding(mesh_of(fsdp=8), tree, ('fsdp',)))}
    assert rows['wide'] == ('wide', (64, 32), 'float32', 'fsdp,-', 64 * 32 * 4 // 8)
    assert rows['small'].spec == 'replicated' and rows['small'].bytes == 1023 * 4


OUT, IN, BIAS = ('-', 'model'), ('model', '-'), ('model',)
ATTENTION = {  # factory: ({path: the last axes of its sharding}, number of leaves that are cut)
    'unet_tiny': ({
        'mid_block/attentions.0/to_q/kernel': OUT, 'mid_block/attentions.0/to_v/bias': BIAS,
        'mid_block/attentions.0/to_out.0/kernel': IN, 'mid_block/attentions.0/to_out.0/bias': ('-',),
        'time_embedding/linear_1/kernel': OUT, 'time_embedding/linear_2/kernel': IN,
        'conv_in/kernel': ('-', '-')}, 4 * 7 + 3),
    'unet_condition_tiny': ({
        'down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_q/kernel': OUT,
        'mid_block/attentions.0/transformer_blocks.0/attn2/to_k/kernel': OUT,
        'up_blocks.1/attentions.1/transformer_blocks.0/attn2/to_out.0/kernel': IN,
        'up_blocks.1/attentions.1/transformer_blocks.0/ff/net.0.proj/bias': BIAS,
        'up_blocks.1/attentions.1/transformer_blocks.0/ff/net.2/kernel': IN,
        'up_blocks.1/attentions.1/proj_in/kernel': ('-', '-')}, 4 * (4 + 4 + 3) + 3),
    'adm_tiny': ({
        'middle_block.1/qkv/kernel': OUT, 'middle_block.1/qkv/bias': BIAS, 'middle_block.1/proj_out/kernel': IN,
        'time_embed.0/kernel': OUT, 'time_embed.2/kernel': IN}, None),
    'adm_classifier_tiny': ({'out.2/qkv_proj/kernel': OUT, 'out.2/c_proj/kernel': IN}, None),
    'songunet_digits': ({
        'dec.4x4_in0/qkv/kernel': OUT, 'dec.4x4_in0/proj/kernel': IN, 'map_layer0/kernel': OUT,
        'map_layer1/kernel': IN}, None),
    'vdm_tiny': ({
        'score_model/mid.attn_1/q/kernel': OUT, 'score_model/mid.attn_1/proj_out/kernel': IN,
        'score_model/dense0/kernel': OUT, 'score_model/dense1/kernel': IN}, 7 + 3),
    'clip_tiny': ({
        'text_model/encoder/layers.0/self_attn/k_proj/bias': BIAS, 'vision_model/encoder/layers.0/mlp/fc1/kernel': OUT,
        'vision_model/encoder/layers.0/mlp/fc2/kernel': IN, 'visual_projection/kernel': ('-', '-')}, 2 * (7 + 3)),
}


@pytest.mark.parametrize('factory', ATTENTION)
def test_tensor_names_attention_and_perceptrons_of_every_family(factory):
    """q, k, v and the first matrix of a perceptron by output, the last ones by input (Megatron-LM, section 3)."""
    expected, count = ATTENTION[factory]
    network, key = getattr(models, factory)(), jax.random.key(0)
    image, label = jnp.zeros((2, 8, 8, 3 if factory == 'clip_tiny' else 1)), jnp.zeros(2, jnp.int32)
    text = jnp.zeros((2, 8, 8, 4)), label, jnp.zeros((2, 5, 16))
    arguments = {'clip_tiny': (image, jnp.zeros((2, 8), jnp.int32)), 'unet_tiny': (image, label, label),
                 'unet_condition_tiny': text,
                 'adm_tiny': (image, label, label)}.get(factory, (image, jnp.ones(2)))
    if factory == 'songunet_digits' and network.label_dim:
        arguments = (*arguments, label)
    params = jax.eval_shape(lambda: network.init(key, *arguments)['params'])
    found = specs({'params': {'net': params}, 'opt': {'mu': {'net': params}}}, ('tensor',), model=2)
    for path, last in expected.items():
        for part in ('params/net/', 'opt/mu/net/'):
            spec = [axis or '-' for axis in found[part + path]]
            assert tuple(spec[-len(last):]) == last and set(spec[:-len(last)]) <= {'-'}, (path, spec)
    cut = sum('model' in s for p, s in found.items() if p.startswith('params'))
    assert count is None or cut == count


def test_score_sde_shortcuts_are_no_attention():
    """NIN_0 is a query beside NIN_3, and the shortcut of a residual block elsewhere."""
    tree = {'a': {f'NIN_{i}': {'W': leaf(8, 8), 'b': leaf(8)} for i in range(4)}, 'r': {'NIN_0': {'W': leaf(8, 8)}}}
    found = specs(tree, ('tensor',), model=2)
    assert found['a/NIN_2/W'] == (None, 'model') and found['a/NIN_2/b'] == ('model',)
    assert found['a/NIN_3/W'] == ('model', None) and found['a/NIN_3/b'] == (None,)
    assert found['r/NIN_0/W'] == (None, None)


def test_refusals_name_the_leaf_and_the_remedy():
    tree = {'fc1': {'kernel': leaf(8, 6), 'bias': leaf(6)}, 'fc2': {'kernel': leaf(6, 8)}}
    for rules, sizes, message in (
            (('tensor',), {'model': 4}, r'dimension 0 of fc1/bias \(6,\).*4 devices along .model.*model=3.*rule'),
            (('.*kernel=fsdp', '.*='), {'fsdp': 4}, r'dimension 0 of fc2/kernel \(6, 8\).*train.mesh.fsdp=3'),
            (('.*bias=,fsdp', '.*='), {'fsdp': 2}, r'fc1/bias names 2 dimensions, but its shape is \(6,\)'),
            (('fdsp',), {}, "'fdsp'.*one of fsdp, tensor"), (('.*=', 'fsdp'), {}, 'leaves nothing to the preset'),
            (('fc1/.*=',), {}, 'no rule matches 1 leaves'), (('fc3/.*=', 'fsdp'), {}, 'match no leaf'),
            (('.*=rows',), {}, "axis 'rows': choose from data, fsdp, model"),
            (('.*kernel=fsdp,fsdp', '.*='), {'fsdp': 2}, "'fsdp,fsdp' names an axis twice")):
        with pytest.raises(ValueError, match=message):
            sharding.state_sharding(mesh_of(**sizes), tree, rules)
    # The rule that the first message proposes.
    assert specs(tree, (r'fc1/kernel=', r'fc1/bias=', r'fc2/kernel=', 'tensor'), model=4)['fc1/kernel'] == ()


@pytest.mark.parametrize('mesh, rules, said', [
    ({'data': 8}, ('fsdp',), 'jit over data 8 (cpu); train.sharding=fsdp cuts nothing, since train.mesh.fsdp is 1'),
    ({'fsdp': 8}, ('fsdp', 'tensor'),
     'jit over fsdp 8 (cpu); train.sharding=tensor cuts nothing, since train.mesh.model is 1'),
    ({'fsdp': 2, 'model': 4}, ('fsdp', 'tensor'), 'jit over fsdp 2 x model 4 (cpu)'),
    ({'data': 1}, ('fsdp',), 'jit over one device (cpu)')])  # the same config on a laptop
def test_a_preset_that_cuts_nothing_is_said(mesh, rules, said):
    runner = make_runner(transformer(), config_of(mesh, rules), EMA, jax.devices()[:int(np.prod(list(mesh.values())))])
    assert runner.description == said


def test_pmap_holds_everything_everywhere():
    for mesh, rules, message in (({'data': 8}, ('fsdp',), "train.sharding=.*'fsdp'.*train.parallel=jit"),
                                 ({'fsdp': 8}, ('.*=',), 'train.mesh.fsdp=8 needs train.parallel=jit')):
        with pytest.raises(ValueError, match=message):
            make_runner(transformer(), config_of(mesh, rules, parallel='pmap'), EMA)


LAYOUTS = [({'data': 2}, ('.*=',)), ({'data': 4}, ('.*=',)), ({'data': 8}, ('.*=',)),
           ({'fsdp': 2}, ('fsdp',)), ({'fsdp': 4}, ('fsdp',)), ({'fsdp': 8}, ('fsdp',)),
           ({'data': 4, 'fsdp': 2}, ('fsdp',)),
           ({'model': 2}, ('tensor',)), ({'data': 2, 'fsdp': 2, 'model': 2}, ('fsdp', 'tensor')), ({'data': 8}, 'pmap')]



def test_freed_memory_is_used_again_without_new_pages():
    """Pages faulted in by 50 buffers of 48 MiB, one after the other, in a process of their own."""
    if platform.libc_ver()[0] != 'glibc':
        return  # nothing is set elsewhere

    def faults(prepare, **env):
        code = (f'import resource, numpy as np\nfrom gen_jax.engine.sharding import keep_freed_memory\n{prepare}\n'
                'np.ones(6 << 20)\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
                'for _ in range(50): np.ones(6 << 20)\n'
                'print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)')
        clean = {k: v for k, v in os.environ.items() if not k.startswith('MALLOC_')}
        return int(subprocess.run([sys.executable, '-c', code], env=clean | env, capture_output=True, text=True,
                                  check=True).stdout)

    kept = faults('keep_freed_memory()')
    assert kept < 1000
    # What the user says in the environment stands.
    limits = {'MALLOC_TRIM_THRESHOLD_': '131072', 'MALLOC_MMAP_THRESHOLD_': '131072'}
    assert faults('keep_freed_memory()', **limits) > 10 * (kept + 100)


@pytest.mark.slow
def test_fifty_steps_of_a_unet_agree_on_every_mesh(capsys):
    """Digits and a small UNet: the same losses to 1e-5 over 50 steps on 1, 2, 4 and 8 devices, however laid out."""
    from gen_jax.build import build
    from gen_jax.config import apply_overrides, load_config
    from gen_jax.engine.evaluate import numeric
    base = apply_overrides(load_config('digits:debug'), ['--config.system.network.block_out_channels=(16,16)',
                                                         '--config.optim.lr=1e-4'])
    run = build(base)

    def fifty(mesh, rules):
        config = config_of(mesh, rules if rules != 'pmap' else ('.*=',), parallel='pmap' if rules == 'pmap' else 'jit')
        ema = {k: dict(v) for k, v in base.train.ema.items()}
        count = int(np.prod(list(mesh.values())))
        runner = make_runner(run.system, config, ema, jax.devices()[:count])
        state, found = init_state(run.system, 0, numeric(run.example_batch), ema), []
        state = runner.place(state)
        with run.open_data(shard_index=0, shard_count=1, ledger=None) as data:
            for _ in range(50):
                state, metrics = runner.update(state, runner.put(numeric(next(data))))
                found.append(float(metrics['denoise/loss']))
        return np.array(found)

    alone = fifty({'data': 1}, ('.*=',))
    for mesh, rules in LAYOUTS:
        difference = np.abs(fifty(mesh, rules) - alone).max()
        with capsys.disabled():
            print(f'{mesh} {rules}: largest difference of a loss {difference:.2g}')
        assert difference <= 1e-5, (mesh, rules, difference)
