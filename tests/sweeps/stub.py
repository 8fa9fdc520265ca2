"""A sweep without JAX, as processes: what a run does stands in its config under `stub`.

    python -m tests.sweeps.stub launch CONFIG WORKDIR JOBS      what gen-jax sweep does
    python -m tests.sweeps.stub run CONFIG WORKDIR ID...        what gen-jax sweep --run does

A training appends its steps to steps.txt, saves every fifth in checkpoints/, resumes from there, and obeys signals.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from gen_jax.config import to_json
from gen_jax.engine.files import write_text
from gen_jax.engine.signals import stop_signals
from gen_jax.sweeps import ledger
from gen_jax.sweeps.execute import Work, execute
from gen_jax.sweeps.launch import launch
from gen_jax.sweeps.plan import make_plan

CONFIG = '''
from gen_jax.config import base_config


def get_config(arg=''):
    c = base_config()
    c.train.steps = 10
    c.stub = {'do': '', 'pause': 0.0, 'needs': ''}
    c.evaluate = {'x': {'predict': 'p', 'settings': {'do': '', 'pause': 0.0}}}
    return c


def sweep(add):
'''


def config_file(folder, *body):
    """A config whose sweep function has these lines."""
    path = Path(folder) / 'stubbed.py'
    path.write_text(CONFIG + ''.join(f'    {line}\n' for line in body))
    return str(path)


def behave(do, home):
    if do == 'fail' and not (home.parent / 'mended').exists():
        raise ValueError('this one\nfails')
    if do == 'die' and not (home.parent / 'mended').exists():
        os.kill(os.getpid(), 9)
    if do == 'compute':  # in C, where Python's signal handlers do not get a turn
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
    if do.startswith('exit'):
        os._exit(int(do[4:]))


def train(config, home):
    print('devices', os.environ.get('CUDA_VISIBLE_DEVICES'))
    if config.stub.needs:  # others must run at the same time
        end = time.monotonic() + 20
        while len(list(home.parent.glob('*/steps.txt'))) < int(config.stub.needs):
            (home / 'steps.txt').touch()
            assert time.monotonic() < end, 'alone'
            time.sleep(0.01)
    write_text(home / 'config.json', to_json(config))
    (home / 'checkpoints').mkdir(exist_ok=True)
    saved = home / 'checkpoints' / 'newest.json'
    step, value = json.loads(saved.read_text()) if saved.exists() else (0, str(config.seed))
    behave(config.stub.do, home)
    with stop_signals(config.train.max_seconds) as stop, open(home / 'steps.txt', 'a') as log:
        while step < config.train.steps and not stop.requested:
            step, value = step + 1, hashlib.md5(value.encode()).hexdigest()
            log.write(f'{step} ')
            log.flush()
            time.sleep(config.stub.pause)
            if step % 5 == 0:
                write_text(saved, json.dumps([step, value]))
        write_text(saved, json.dumps([step, value]))
    return stop.exit_code if step < config.train.steps else 0


def evaluate(run, base, home):
    settings = run.config.evaluate.x.settings
    print(f'process {os.getpid()} evaluates {run.id}')
    time.sleep(settings.pause)
    behave(settings.do, home)
    step, value = json.loads((base / 'checkpoints' / 'newest.json').read_text())
    seed = run.config.evaluate.x.get('seed', 0)
    write_text(home / 'evaluation.json', json.dumps({'step': step, 'x': {'value': f'{value} {seed}'}}))


def main(what, config, workdir, *rest):
    plan = make_plan(config)
    ledger.claim(workdir, plan)
    if what == 'run':
        return execute(plan, rest, workdir, Work(train, evaluate), to_log=True)
    program = [sys.executable, '-m', 'tests.sweeps.stub', 'run', config, str(workdir)]
    return launch(plan, workdir, lambda ids: [*program, *ids], jobs=int(rest[0]), patience=float(rest[1]),
                  say=lambda text: print(text, flush=True))


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
