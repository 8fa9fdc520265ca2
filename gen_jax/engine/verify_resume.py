"""Is a resumed run the run that was left alone? Asked of real processes, one of which is really killed."""

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen_jax.engine.checkpoint import Checkpoints, read_leaves
from gen_jax.engine.writers import read_jsonl, without_wall_clock

__all__ = ['Difference', 'compare', 'verify']


class Difference(NamedTuple):
    """Something that two runs do not share."""

    what: str
    largest: float | None
    """Largest absolute difference of its values; None where they cannot be subtracted."""
    relative: float | None
    """The same over the largest absolute value of the first run."""

    def __str__(self) -> str:
        if self.largest is None:
            return self.what
        return f'{self.what}: largest difference {self.largest:.3g} ({self.relative:.3g} of the largest value)'


def _values(name: str, a: Any, b: Any) -> Difference:
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype.kind in 'USO':
        return Difference(f'{name}: {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}' if a.dtype.kind not in 'USO'
                          else f'{name}: {a} and {b}', None, None)
    a, b = a.astype(np.float64), b.astype(np.float64)
    gap = np.max(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b)), initial=0.0)
    return Difference(name, float(gap), float(gap / max(np.max(np.abs(a), initial=0.0), 1e-300)))


def compare(a, b) -> tuple[list[Difference], str]:
    """(what differs between two runs: data position, leaves, log; what was compared), bit by bit.

    Args:
        a, b: workdirs with a checkpoint and metrics.jsonl each; their newest steps are compared.
    """
    metas = []
    for path in (a, b):
        store = Checkpoints(path, read_only=True)
        metas.append(store.meta())
        store.close()
    found = [Difference(f'{key}: {metas[0].get(key)} and {metas[1].get(key)}', None, None)
             for key in ('step', 'data', 'rollbacks', 'skips') if metas[0].get(key) != metas[1].get(key)]
    left, right = read_leaves(a), read_leaves(b)
    found += [Difference(f'leaf {k}: in one run only', None, None) for k in sorted(left.keys() ^ right.keys())]
    found += [_values(f'leaf {k}', left[k], right[k]) for k in left if k in right
              and (left[k].dtype != right[k].dtype or left[k].shape != right[k].shape
                   or left[k].tobytes() != right[k].tobytes())]
    logs = [[without_wall_clock(r) for r in read_jsonl(Path(p) / 'metrics.jsonl')] for p in (a, b)]
    found += _log_differences(*logs)
    numbers = sum(leaf.size for leaf in left.values())
    return found, (f'{len(left)} leaves ({numbers:,} values), {len(logs[0])} log rows, data position '
                   f'{metas[0]["data"]}')


def _log_differences(a: Sequence[Mapping], b: Sequence[Mapping]) -> list[Difference]:
    shape = [[(r['step'], sorted(r)) for r in rows] for rows in (a, b)]
    if shape[0] != shape[1]:
        first = next((x for x, y in zip(*shape, strict=False) if x != y), None)
        return [Difference(f'log: {len(a)} and {len(b)} rows, ' + (f'first unlike at step {first[0]}' if first else
                           'the shorter one ends early'), None, None)]
    return [_values(f'log {key} at step {x["step"]}', x[key], y[key])
            for x, y in zip(a, b, strict=True) for key in x if repr(x[key]) != repr(y[key])]


def verify(spec: str, overrides: Sequence[str], program: Sequence[str], *, steps: int = 100, workdir=None,
           devices_after: int | None = None, say: Callable[[str], None] = print) -> int:
    """Trains `steps` updates straight, and again with a kill -9 behind the checkpoint at the half, and compares.

    Args:
        spec, overrides: the config, as for `gen-jax train`; the length, the checkpoints and the log are set here.
        program: the command that trains, for instance ('gen-jax', 'train').
        workdir: where the two runs stay, in `straight` and `killed`; None: a temporary folder.
        devices_after: virtual CPU devices of the second half; the result is then reported and called no error, for
            another order of summation rounds differently.

    Returns:
        0 if the runs are equal bit by bit (or `devices_after` is given and only values differ), else 1.

    Raises:
        ValueError: too few steps, or a workdir that is used already.
        RuntimeError: a run that failed, or that ended before it could be killed.
    """
    if steps < 4:
        raise ValueError(f'--steps {steps}: at least 4')
    if devices_after is not None and devices_after < 1:
        raise ValueError(f'--devices-after {devices_after}: at least 1')
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix='gen_jax-verify-') as scratch:
            return verify(spec, overrides, program, steps=steps, workdir=scratch, devices_after=devices_after, say=say)
    workdir, half = Path(workdir), steps // 2
    mine = {'train.steps': steps, 'log.every_steps': 1, 'checkpoint.every_steps': half}
    kept = [o for o in overrides if o.partition('=')[0].removeprefix('--config.') not in mine]
    command = [*program, '--config', spec, *kept, *(f'--config.{k}={v}' for k, v in mine.items())]
    for name in ('straight', 'killed'):
        if (workdir / name).exists():
            raise ValueError(f'{workdir / name} exists: name another --workdir')
    workdir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def start(name: str, *more: str) -> subprocess.Popen:
        with open(workdir / f'{name}.txt', 'ab') as out:
            return subprocess.Popen([*command, '--workdir', str(workdir / name), *more], stdout=out,
                                    stderr=subprocess.STDOUT)

    def finish(name: str, *more: str) -> float:
        since = time.monotonic()
        with start(name, *more) as process:
            if code := process.wait():
                raise RuntimeError(f'the run ended with code {code}:\n{_tail(workdir / f"{name}.txt")}')
        return time.monotonic() - since

    seconds = finish('straight')
    say(f'straight: {steps} steps in {seconds:.1f} s')
    checkpoint = workdir / 'killed' / 'checkpoints' / str(half)
    with start('killed') as process:
        try:
            while process.poll() is None and not checkpoint.is_dir():
                time.sleep(0.001)
        finally:
            process.send_signal(signal.SIGKILL)
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError('the run ended before it could be killed (raise --steps):\n'
                           + _tail(workdir / 'killed.txt'))
    log = read_jsonl(workdir / 'killed' / 'metrics.jsonl')
    say(f'killed (-9) at step {log[-1]["step"]}, after the checkpoint of step {half}')
    more = () if devices_after is None else (f'--config.train.cpu_devices={devices_after}',)
    say(f'resumed: {finish("killed", *more):.1f} s')
    found, what = compare(workdir / 'straight', workdir / 'killed')
    return _verdict(found, what, workdir, devices_after, time.monotonic() - began, say)


def _verdict(found: Sequence[Difference], what: str, workdir: Path, devices_after: int | None, seconds: float,
             say: Callable[[str], None]) -> int:
    ran = []
    for name in ('straight', 'killed'):
        store = Checkpoints(workdir / name, read_only=True)
        ran.append(store.meta()['devices'])
        store.close()
    if devices_after is not None and ran[1] != devices_after:
        raise RuntimeError(f'--devices-after {devices_after}: the run had {ran[1]} devices; the option is for virtual '
                           'devices on the CPU (JAX_PLATFORMS=cpu)')
    end = f'{seconds:.1f} s in all'
    if not found:
        say(f'equal, bit by bit: {what}; {end}')
        return 0
    worst = [max(part, key=lambda d: d.relative) for kind in ('leaf ', 'log ')
             if (part := [d for d in found if d.what.startswith(kind) and d.relative is not None])]
    if ran[0] != ran[1] and all(d.largest is not None for d in found):
        say(f'not equal bit by bit, as on {ran[0]} and then {ran[1]} devices sums are taken in another order: '
            f'{len(found)} leaves and logged numbers, of {what}; the largest:')
        for difference in worst:
            say(f'  {difference}')
        say(end)
        return 0
    say(f'DIFFERENT: {len(found)} differences in {what}; the first: {found[0]}')
    for difference in worst:
        say(f'  the largest: {difference}')
    say(end)
    return 1


def _tail(path: Path) -> str:
    return path.read_text(errors='replace')[-2000:]
