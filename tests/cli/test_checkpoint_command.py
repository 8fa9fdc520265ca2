"""gen-jax checkpoint: what it prints, its exit codes, and what it never deletes."""

import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from gen_jax.cli.main import main
from gen_jax.engine import integrity
from gen_jax.engine.checkpoint import Checkpoints, read_leaves
from gen_jax.types import TrainState


def state(step, shift=0.0, **more):
    weights = {'net': {'a': jnp.arange(6.0), 'b': jnp.full(4, 2.0).at[1].add(shift), 'c': jnp.zeros(3, jnp.int32)}}
    return TrainState(jnp.int32(step), {**weights, **more}, {'net': {'b': jnp.full(4, shift)}}, {}, {}, {})


def save(workdir, *steps, **kwargs):
    store = Checkpoints(workdir, keep_last=99)
    config = {'seed': kwargs.pop('seed', 0), 'train': {'steps': 9}}
    for step in steps:
        store.save(step, state(step, **kwargs), {'config': config}, metrics={'loss': step / 7, 'fid': 3.0}, wait=True)
    store.close()
    return workdir


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    return save(tmp_path_factory.mktemp('run'), 10, 20, 30, 40)


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / 'run')
    return tmp_path / 'run'


def damage(run, step, name='meta/metadata'):
    path = run / 'checkpoints' / str(step) / name
    data = path.read_bytes()
    path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    return path


def steps(run):
    return sorted(int(p.name) for p in (run / 'checkpoints').iterdir())


def call(capsys, *args):
    code = main(['checkpoint', *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_ls(run, capsys):
    (run / 'checkpoints' / '20' / 'state' / '_METADATA').unlink()
    damage(run, 30)
    code, out, _ = call(capsys, 'ls', run)
    rows = out.splitlines()
    assert code == 0 and [row.split()[0].rsplit('/', 1)[1] for row in rows] == ['10', '20', '30', '40']
    size = sum(p.stat().st_size for p in (run / 'checkpoints' / '40').rglob('*') if p.is_file())
    assert f'{size:,} bytes' in rows[3] and '  manifest  ' in rows[3] and rows[3].endswith('loss 5.714  fid 3')
    assert rows[3].split(' bytes  ')[1][:2] == '20' and 'BAD: ' in rows[1] and '_METADATA: missing' in rows[1]
    assert '  manifest' in rows[2], 'ls hashes nothing'
    assert call(capsys, 'ls', run / 'checkpoints')[1] == out
    assert call(capsys, 'ls', run / 'checkpoints' / '40')[1].splitlines() == rows[3:]


def test_ls_of_steps_whose_metadata_are_something_else(run, capsys):
    for step, text in zip((10, 20, 30, 40), ('null', '[3]', '{"metrics": null}', '{"saved": 1e300}'), strict=True):
        (run / 'checkpoints' / str(step) / 'meta' / 'metadata').write_text(text)
    code, out, _ = call(capsys, 'ls', run)
    assert code == 0 and out.count('  ?                    BAD: ') == 4 and out.count('metadata: size ') == 4


def test_paths_as_a_shell_gives_them(run, capsys, monkeypatch):
    monkeypatch.chdir(run / 'checkpoints')
    (run / 'checkpoints' / '²').mkdir()  # a digit, and no number
    assert call(capsys, 'ls', '.')[1].count('  manifest  ') == call(capsys, 'ls', '..')[1].count('  manifest  ') == 4
    monkeypatch.chdir(run / 'checkpoints' / '40')
    assert call(capsys, 'verify', '.')[1].count(': verified') == 1 and call(capsys, 'verify', '..')[1].count(': ') == 4
    assert 'is one step' in call(capsys, 'prune', '.', '--keep-last', 1)[2]
    (run / 'checkpoints' / '²').rmdir()
    run = run.rename(run.with_name('checkpoints'))  # a workdir may be called like that
    assert call(capsys, 'ls', run)[1].count('  manifest  ') == 4 and read_leaves(run)['step'] == 40


def test_verify(run, capsys):
    code, out, _ = call(capsys, 'verify', run)
    assert code == 0 and out.count(': verified') == 4
    path = damage(run, 30)
    code, out, _ = call(capsys, 'verify', run, run / 'checkpoints' / '10')
    assert code == 1 and out.count(': verified') == 4 and f'BAD: {path}: its SHA-256 is not' in out
    assert call(capsys, 'verify', run / 'checkpoints' / '40')[0] == 0


def test_prune_keeps_the_newest_that_verifies(run, capsys):
    damage(run, 40)
    code, out, _ = call(capsys, 'prune', run, '--keep-last', 1, '--dry-run')
    assert code == 0 and out.count('would remove') == 2 and steps(run) == [10, 20, 30, 40]
    size = sum(p.stat().st_size for n in '12' for p in (run / 'checkpoints' / f'{n}0').rglob('*') if p.is_file())
    code, out, _ = call(capsys, 'prune', run, '--keep-last', 1)
    assert code == 0 and out.count('removed ') == 2
    assert f'2 steps, {size:,} bytes; the newest that verifies is 30' in out
    assert steps(run) == [30, 40], '40 is the newest, 30 the newest good one'
    damage(run, 30)
    code, _, err = call(capsys, 'prune', run, '--keep-last', 1)
    assert code == 2 and 'no step verifies, so nothing was deleted' in err and steps(run) == [30, 40]


def test_prune_keeps_multiples_and_leaves_no_half_step(run, capsys, monkeypatch):
    assert call(capsys, 'prune', run, '--keep-last', 2, '--keep-every', 20)[0] == 0 and steps(run) == [20, 30, 40]

    def killed(path, *args, **kwargs):
        if not kwargs.get('ignore_errors'):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'rmtree', killed)
        with pytest.raises(KeyboardInterrupt):
            main(['checkpoint', 'prune', str(run), '--keep-last', '2'])
    assert call(capsys, 'verify', run)[0] == 0
    Checkpoints(run).close()
    assert steps(run) == [30, 40]


def test_prune_of_a_step_that_is_a_link(run, tmp_path, capsys):
    shutil.move(run / 'checkpoints' / '20', tmp_path / '20')
    (run / 'checkpoints' / '20').symlink_to(tmp_path / '20')
    assert call(capsys, 'prune', run, '--keep-last', 1)[0] == 0
    assert steps(run) == [40] and integrity.verify(tmp_path / '20')


def test_diff_of_equal_runs_reads_no_arrays(run, original, capsys, monkeypatch):
    monkeypatch.setattr('gen_jax.engine.difference.read_leaves', lambda path: pytest.fail('read the arrays'))
    code, out, _ = call(capsys, 'diff', run, original)
    assert code == 0 and 'all 5 leaves are equal' in out and 'config' not in out


def test_diff_names_leaves_and_sizes(original, tmp_path, capsys):
    other = save(tmp_path / 'other', 40, shift=0.25, seed=1)
    code, out, _ = call(capsys, 'diff', original, other / 'checkpoints' / '40')
    assert code == 1 and 'config seed: 0 and 1' in out
    assert '2 of 5 leaves differ; the first is params/net/b' in out
    assert 'params/net/b: largest difference 0.25 in 1 elements' in out
    assert 'opt/net/b: largest difference 0.25 in 4 elements' in out
    assert 'largest absolute difference: 0.25 in params/net/b' in out
    code, out, _ = call(capsys, 'diff', original / 'checkpoints' / '10', original / 'checkpoints' / '20')
    assert code == 1 and 'the first is step' in out and 'largest difference 10 in 1 elements' in out
    wide = save(tmp_path / 'wide', 40, more={'d': jnp.ones(2)})
    code, out, _ = call(capsys, 'diff', original, wide)
    assert code == 1 and 'params/more/d: only in B' in out and '1 of 6 leaves differ' in out


def test_diff_falls_back_and_compares_old_steps_by_their_arrays(run, original, capsys):
    damage(run, 40)
    code, out, _ = call(capsys, 'diff', run, original / 'checkpoints' / '30')
    assert code == 0 and 'WARNING: ' in out and 'all 5 leaves are equal' in out
    assert call(capsys, 'diff', run / 'checkpoints' / '40', original)[0] == 2
    folder = run / 'checkpoints' / '30'
    text = (folder / 'meta' / 'metadata').read_text().replace('"fingerprints"', '"earlier"')
    (folder / 'meta' / 'metadata').write_text(text)
    integrity.write_manifest(folder, '30')
    assert call(capsys, 'diff', run, original / 'checkpoints' / '30')[0] == 0
    code, out, _ = call(capsys, 'diff', run, original)
    assert code == 1 and '1 of 5 leaves differ; the first is step' in out


def test_bad_input_is_one_line(original, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'empty' / 'checkpoints').mkdir(parents=True)
    for args, message in ((('ls', tmp_path / 'none'), 'none holds no checkpoint: there is no such folder'),
                          (('verify', tmp_path / 'file'), 'it is a file'),
                          (('ls', tmp_path), 'it has no folder "checkpoints"'),
                          (('prune', tmp_path / 'empty', '--keep-last', 1), 'holds no step'),
                          (('diff', original), 'diff with two paths'), (('ls',), 'needs ls, verify or prune'),
                          ((), 'needs ls, verify or prune'), (('prune', original), 'needs --keep-last N'),
                          (('prune', original, '--keep-last', 0), '--keep-last 0: at least 1'),
                          (('prune', original, '--keep-last', 1, '--keep-every', 0), '--keep-every 0: at least 1'),
                          (('prune', original / 'checkpoints' / '10', '--keep-last', 1), 'is one step'),
                          (('diff', original, tmp_path / 'none'), 'there is no such folder')):
        code, out, err = call(capsys, *args)
        assert code == 2 and message in err and err.count('\n') == 1 and not out, (args, err)
    assert steps(original) == [10, 20, 30, 40]


def test_listing_and_verifying_need_no_jax(original):
    code = ('import sys; from gen_jax.cli.main import main; code = main(sys.argv[1:]); '
            'print(code, sorted(m for m in ("jax", "flax", "orbax") if m in sys.modules))')
    for action in ('ls', 'verify'):
        out = subprocess.run([sys.executable, '-c', code, 'checkpoint', action, str(original)], capture_output=True,
                             text=True, check=True)
        assert out.stdout.endswith('0 []\n'), out.stdout
