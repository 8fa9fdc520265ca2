"""Frozen weights beside the checkpoints: damage is one error, and one only."""

import subprocess
import sys

import numpy as np

from gen_jax.engine.frozen import save_frozen

READ = """
import sys
from pathlib import Path
import jax
from gen_jax.engine.frozen import read_frozen
from gen_jax.engine.integrity import IntegrityError
abstract = {f'leaf_{i}': jax.ShapeDtypeStruct((64, 64), 'float32') for i in range(100)}
try:
    print(float(read_frozen(Path(sys.argv[1]), {'vae': sys.argv[2]}, {'vae': abstract})['vae']['leaf_3'].sum()))
except IntegrityError as e:
    print('IntegrityError', e)
"""


def test_damage_is_one_message(tmp_path):
    """Without the complaints of all the reads that Orbax has under way at the same time."""
    rng = np.random.default_rng(0)
    leaves = {f'leaf_{i}': rng.normal(size=(64, 64)).astype(np.float32) for i in range(100)}
    digest = save_frozen(tmp_path, {'vae': leaves})['vae']

    def read():
        return subprocess.run([sys.executable, '-c', READ, str(tmp_path), digest], capture_output=True, text=True)

    assert abs(float(read().stdout) - leaves['leaf_3'].sum()) < 1e-2
    for file in tmp_path.rglob('*'):
        if file.is_file() and 'd' in file.parent.name and file.stat().st_size > 500:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
    out = read()
    assert out.stdout.startswith('IntegrityError') and f'vae-{digest}' in out.stdout
    assert 'never retrieved' not in out.stderr and 'Traceback' not in out.stderr and 'WARNING' not in out.stderr
