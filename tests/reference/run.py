"""The reference environment's Python, which has torch, diffusers and transformers, and no gen_jax."""

import functools
import json
import os
import subprocess
from pathlib import Path

__all__ = ['peer']

QUIET = {'HF_HUB_OFFLINE': '1', 'TQDM_DISABLE': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'}


@functools.cache
def _server() -> subprocess.Popen:
    """One process for all tests: importing torch and diffusers costs more than what they are asked."""
    program = os.environ.get('REFERENCE_PYTHON')
    assert program, 'set REFERENCE_PYTHON to a Python with torch, diffusers and transformers: make test-reference'
    return subprocess.Popen([program, str(Path(__file__).with_name('peer.py')), 'serve'], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **QUIET})


def peer(*command, silent: bool = True) -> None:
    """Has peer.py do something; if silent, whatever it writes is a complaint. It ends with our end of the pipe."""
    server = _server()
    server.stdin.write(json.dumps(list(map(str, command))) + '\n')
    server.stdin.flush()
    line = server.stdout.readline()
    assert line, f'peer.py ended with {server.wait()}'
    answer = json.loads(line)
    assert answer['error'] is None, answer['said'] + answer['error']
    assert not silent or not answer['said'], answer['said']
