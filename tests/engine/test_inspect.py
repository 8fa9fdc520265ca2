"""What inspect counts, on programs whose cost is known; the command, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import pytest

from gen_jax.cli.inspect_batch import abstract_batch
from gen_jax.cli.main import main
from gen_jax.config import ConfigError, apply_overrides, load_config
from gen_jax.engine import costs
from gen_jax.engine.inspect import GIB, fit_batch, modules_of
from gen_jax.engine.inspect_page import count, size, span


def flops(f, *arguments):
    return dict(costs.flops_of(jax.make_jaxpr(f)(*arguments)))


def test_flops_of_known_programs():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    assert flops(lambda a, b: jnp.tanh(a @ b), a, b) == {'float32': 2 * 4 * 8 * 16}
    assert flops(lambda a, b: jnp.einsum('bij,bjk->bik', a, b), jnp.ones((3, 4, 8)), jnp.ones((3, 8, 2))) == {
        'float32': 3 * 2 * 4 * 8 * 2}
    assert flops(lambda a: jax.lax.scan(lambda c, _: (c @ jnp.ones((8, 8)), None), a, None, 5)[0], a) == {
        'float32': 5 * 2 * 4 * 8 * 8}
    assert flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda x: x @ x.T @ x, lambda x: x, a), a) == {
        'float32': 2 * 2 * 4 * 4 * 8}
    once = flops(lambda a: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ jnp.ones((8, 8)), a), a)
    assert once == {'float32': 2 * 4 * 8 * 8, 'unknown loops': 1}
    half = flops(jax.jit(lambda a, b: a @ b), a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    assert half == {'bfloat16': 2 * 4 * 8 * 16}
    assert flops(jax.pmap(lambda a: a @ a.T), jnp.ones((4, 2, 8))) == {'float32': 4 * 2 * 2 * 2 * 8}


def test_flops_of_convolutions_and_of_what_remat_repeats():
    x, k = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def conv(x, k, stride):
        return jax.lax.conv_general_dilated(x, k, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    for stride, pixels in ((1, 64), (2, 16)):
        forward = 2 * 2 * pixels * 5 * 27
        assert flops(lambda x, k, s=stride: conv(x, k, s), x, k) == {'float32': forward}
        # Backward: the same again for the image and for the kernel.
        both = flops(jax.grad(lambda x, k, s=stride: conv(x, k, s).sum(), (0, 1)), x, k)
        assert both == {'float32': 3 * forward} or both == {'float32': 2 * forward}

    def layer(x, w):
        return jnp.tanh(x @ w)

    def loss(f):
        return lambda x, w: f(f(x, w), w).sum()

    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))
    plain, again = (flops(jax.grad(loss(f), 1), x, w)['float32'] for f in (layer, jax.checkpoint(layer)))
    assert plain == 5 * 2 * 4 * 64 and again == 7 * 2 * 4 * 64  # two forward and three backward; two of them again


HLO = """
  %all-reduce.3 = (f32[8]{0}, /*index=1*/bf16[3,3]{1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  ROOT %ag = f32[16,4]{1,0} all-gather(f32[2,4]{1,0} %p), dimensions={0}, metadata={op_name="x/all-reduce"}
  %ag2 = (f32[2,4]{1,0}, f32[16,4]{1,0}) all-gather-start(f32[2,4]{1,0} %p), dimensions={0}
  %done = f32[16,4]{1,0} all-gather-done(%ag2)
  %cp = pred[10]{0} collective-permute(%q), source_target_pairs={{0,1}}
  %f = f32[8]{0} fusion(f32[8]{0} %all-reduce.3), kind=kLoop
"""


def test_collectives_are_read_from_the_program():
    assert costs.collectives(HLO) == {'all-reduce': {'count': 1, 'bytes': 32 + 18},
                                      'all-gather': {'count': 2, 'bytes': 512},
                                      'collective-permute': {'count': 1, 'bytes': 10}}
    assert costs.collectives('%x = f32[2]{0} add(%a, %b)') == {}


def test_roofline():
    chip = costs.find_chip('tpu-V5E')
    assert chip.name == 'v5e' and costs.find_chip('h100').bandwidth == 3.35e12
    r = costs.roofline(chip, {'bfloat16': 197e12}, 0.819e12 / 2, 98.5e12)
    assert (r['seconds'], r['bound'], r['mfu']) == (1.0, 'compute', 0.5)
    r = costs.roofline(chip, {'bfloat16': 197e12}, 0.819e12 * 4, 197e12)
    assert (r['seconds'], r['bound'], r['mfu']) == (4.0, 'memory', 0.25)
    mixed = costs.roofline(costs.find_chip('A100'), {'bfloat16': 312e12, 'float32': 156e12}, None, 312e12)
    assert mixed['seconds'] == 2.0 and mixed['peak_flops'] == 312e12 and mixed['memory_seconds'] is None
    with pytest.raises(ValueError, match="unknown chip 'H10': did you mean H100"):
        costs.find_chip('H10')


def test_the_largest_batch_is_found_on_a_line_and_confirmed():
    measured = []

    def line(batch):
        measured.append(batch)
        return 1000 + 10 * batch

    found = fit_batch(line, 64, 8, limit=5000)
    assert found['batch'] == 400 and found['bytes'] == found['predicted_bytes'] == 5000 and measured == [64, 32, 400]
    measured.clear()
    assert fit_batch(line, 64, 8, limit=5079, known=1640)['batch'] == 400 and measured == [32, 400]

    def bent(batch):  # dearer per example behind 200
        return line(batch) + 10 * max(batch - 200, 0)

    found = fit_batch(bent, 64, 8, limit=5000)
    assert found['bytes'] <= 5000 < bent(found['batch'] + 8) and found['batch'] == 296
    assert fit_batch(line, 8, 8, limit=1000)['batch'] == 0
    with pytest.raises(ValueError, match='memory does not grow'):
        fit_batch(lambda batch: 7, 8, 8, limit=100)


def test_reading_aids():
    assert [size(1536), size(5), size(3 * GIB)] == ['1.50 KiB', '5 B', '3.00 GiB']
    assert [count(3.03e9), count(12), span(0.5), span(2)] == ['3.03 G', '12', '500 ms', '2 s']
    tree = {'net': {'a': {'b': {'kernel': jnp.ones((2, 3))}, 'c': {'bias': jnp.ones(3)}}, 'd': jnp.ones(2)}}
    assert modules_of(tree) == {'net': {'leaves': 1, 'parameters': 2}, 'net.a': {'leaves': 2, 'parameters': 9}}
    assert list(modules_of(tree, 3)) == ['net', 'net.a.b', 'net.a.c']
    blocks = {f'blocks.{i}': {'kernel': jnp.ones(i)} for i in (2, 10, 1)}
    assert list(modules_of(blocks, 2)) == ['blocks.1', 'blocks.2', 'blocks.10']


def test_the_command(capsys):
    """The tiny UNet over two of the suite's devices: every number there, consistent with each other."""
    arguments = ['inspect', '--config', 'digits:debug', '--mesh', 'fsdp=2', "--config.train.sharding=('fsdp',)",
                 '--chip', 'H100', '--config.system.network.block_out_channels=(8,)',  # one resolution
                 "--config.system.network.down_block_types=('DownBlock2D',)",
                 "--config.system.network.up_block_types=('UpBlock2D',)"]
    assert main([*arguments, '--json']) == 0
    r = json.loads(capsys.readouterr().out)
    assert r['estimate'] and r['devices'] == 2 and r['parameters'] == {'unet': 9201}
    assert sum(m['parameters'] for m in r['modules'].values()) == 9201 and r['modules']['unet.mid_block']
    assert r['state_bytes_whole']['params'] == 4 * 9201 and r['state_bytes_whole']['opt'] == 8 * 9201 + 8
    assert sum(p['bytes'] for p in r['placements']) == r['state_bytes']['total'] < r['state_bytes_whole']['total']
    m = r['memory']
    assert m['argument_bytes'] - r['state_bytes']['total'] - r['batch_bytes'] // 2 in range(0, 65)
    assert m['peak_bytes'] == m['argument_bytes'] + m['fresh_bytes'] + m['temp_bytes']
    assert r['model_flops'] == sum(r['flops'].values()) and 0.4 < r['xla']['flops'] * 2 / r['model_flops'] < 2
    assert r['collectives']['all-gather']['count'] and r['collectives']['all-reduce']['bytes']
    assert r['cache'] in ('hit', 'miss') and set(r['seconds']) == {'trace', 'lower', 'compile'}
    assert r['roofline']['chip'] == 'H100' and 0 < r['roofline']['mfu'] < 1 and r['intensity'] > 0
    forward = r['sampler']['flops_per_call'] * r['batch_size']
    assert 2.5 < r['model_flops'] / forward <= 3 and r['sampler']['flops'] == r['sampler']['calls'] * forward / 16

    assert main([*arguments, '--no-compile', '--leaves', '--depth', '1']) == 0
    text = capsys.readouterr().out
    assert 'an estimate' in text and '9,201' in text and 'not compiled' in text
    assert 'on H100' in text and '-,fsdp' in text and 'replicated' in text


def test_data_that_are_not_here():
    """Shapes from the config, or as they are said."""
    nowhere = ['--config.data.source=folder:nowhere', '--config.data.batch_size=4', '--config.data.options={}']
    digits = apply_overrides(load_config('digits:debug'), nowhere)
    assert {k: (v.shape, str(v.dtype)) for k, v in abstract_batch(digits).items()} == {
        'image': ((4, 8, 8, 1), 'uint8'), 'label': ((4,), 'int32')}
    clip = apply_overrides(load_config('shapes_clip'), nowhere)
    with pytest.raises(ConfigError, match=r'unknown: .*nowhere.*--input image=uint8\[32,32,3\]'):
        abstract_batch(clip)
    said = abstract_batch(clip, ['image=uint8[32,32,3]', 'tokens=int32[10]', 'weight=float32'])
    assert {k: v.shape for k, v in said.items()} == {'image': (4, 32, 32, 3), 'tokens': (4, 10), 'weight': (4,)}


def test_refusals_are_one_line(capsys, tmp_path):
    empty = tmp_path / 'empty.py'
    empty.write_text('from gen_jax.config import base_config\n\n\ndef get_config(arg=""):\n    return base_config()\n')
    debug = ['--config', 'digits:debug']
    for arguments, message in (
            ([*debug, '--mesh', 'data=8', '--batch-size', '12'], 'data.batch_size 12 is not divisible by 8 devices'),
            ([*debug, '--chip', 'H10', '--mesh', 'data=1'], "unknown chip 'H10': did you mean H100"),
            ([*debug, '--mesh', 'rows=2'], "'rows=2' is not AXIS=N with an axis of data, fsdp, model"),
            ([*debug, '--mesh', 'data'], 'is not AXIS=N'),
            ([*debug, '--mesh', 'data=0'], 'sizes are at least 1'),
            ([*debug, '--mesh', 'data=1', '--fit', '-1'], '--fit -1.0: a positive number of GiB'),
            ([*debug, '--mesh', 'data=1', '--fit', 'nan'], '--fit nan: a positive number of GiB'),
            ([*debug, '--depth', '0'], '--depth 0: at least 1'),
            ([*debug, '--mesh', 'data=1', '--fit', '1', '--no-compile'], 'leave --no-compile out'),
            ([*debug, '--mesh', 'data=1', '--input', 'image'], 'expected KEY=DTYPE'),
            ([*debug, '--mesh', 'fsdp=2', "--config.train.sharding=('.*kernel=fsdp','.*=')"],
             "is not divisible by the 2 devices along 'fsdp'"),
            (['--config', str(empty)], 'names no system: set system.name'), ([], 'needs --config NAME')):
        assert main(['inspect', *arguments]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and len(error.strip().splitlines()) == 1, (arguments, error)


@pytest.mark.slow
def test_a_mesh_larger_than_the_machine_and_the_largest_batch(capfd):
    """16 devices in a process of its own; the batch that is found keeps its word."""
    arguments = ['inspect', '--config', 'digits:debug', '--mesh', 'data=4,fsdp=4', "--config.train.sharding=('fsdp',)",
                 '--json']
    assert main(arguments) == 0
    r = json.loads(capfd.readouterr().out)
    assert r['devices'] == 16 and r['mesh'] == {'data': 4, 'fsdp': 4, 'model': 1}
    assert main([*arguments, '--fit', '0.01']) == 0
    f = json.loads(capfd.readouterr().out)['fit']
    assert f['batch'] % 16 == 0 and 0.9 * 0.01 * GIB < f['bytes'] <= 0.01 * GIB and len(f['compilations']) >= 3
