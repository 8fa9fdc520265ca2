"""What loading published weights costs beyond reading their bytes.

    python -m experiments.benchmarks.loading --out docs/benchmarks_loading.json

Writes random weights of Stable Diffusion 1.5's UNet (859,520,964 parameters: 3.4 GB in float32, 1.7 GB in float16) to a
temporary folder, reads the file once so that it is in the page cache, and then, in a fresh process each time:

* read: the file's bytes into fresh memory; `again`: into memory that the process had already written to.
* load: `open_model(folder).load(dtype)` until every array is ready. The module is traced first (`trace`, once per
  network and process, whatever it weighs), so that `load` is transposing and placing; `all` is both.

Prints seconds (the best of --runs; `_cpu`: of processor time, all threads), the best ratios of neighbours in time, and
the peak of anonymous memory (RssAnon) above that of the process before. The folder is deleted.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RUN = 'import sys; from experiments.benchmarks import loading; loading.{}(*sys.argv[1:])'


def anonymous() -> int:
    """Bytes of anonymous memory that this process holds."""
    status = Path('/proc/self/status').read_text()
    return int(status.split('RssAnon:')[1].split()[0]) * 1024


class Peak:
    """The largest RssAnon within a block, above that at its start."""

    def __enter__(self):
        self.base, self.most, self.over = anonymous(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.01):
            self.most = max(self.most, anonymous() - self.base)

    def __exit__(self, *_):
        self.most = max(self.most, anonymous() - self.base)
        self.over.set()
        self.thread.join()


def write(folder, dtype):
    """Random weights, tensor by tensor."""
    import numpy as np

    from gen_jax.interop.classes import CLASSES, abstract_params
    from gen_jax.interop.formats import Tensor, write_json, write_weights
    from gen_jax.interop.torch_layout import flatten, torch_shape
    from gen_jax.models import sd15_unet
    unet, rng = sd15_unet(), np.random.default_rng(0)
    shapes = {k: torch_shape(path, leaf.shape) for k, (path, leaf) in flatten(abstract_params(unet)).items()}
    tensors = {k: Tensor(s, np.dtype(dtype), lambda s=s: rng.standard_normal(s, np.float32).astype(dtype))
               for k, s in shapes.items()}
    write_weights(Path(folder), 'diffusion_pytorch_model', tensors)
    write_json(Path(folder) / 'config.json', CLASSES['UNet2DConditionModel'].config(unet))


def read(path):
    """Seconds for the bytes of a file."""
    size = os.path.getsize(path)
    began, cpu = time.perf_counter(), time.process_time()
    with open(path, 'rb', buffering=0) as file:
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        while done < size:
            done += file.readinto(view[done:done + (1 << 26)])
        fresh, cpu = time.perf_counter() - began, time.process_time() - cpu
        file.seek(0)
        began, done = time.perf_counter(), 0
        while done < size:
            done += file.readinto(view[done:done + (1 << 26)])
    print(json.dumps({'read': fresh, 'read_cpu': cpu, 'again': time.perf_counter() - began}))


def load(folder, dtype):
    """Seconds and memory for the arrays of a folder."""
    import jax

    from gen_jax.interop.load import open_model
    jax.config.update('jax_platforms', 'cpu')
    jax.block_until_ready(jax.device_put(1.0))
    began = time.perf_counter()
    open_model(folder)
    traced = time.perf_counter()
    with Peak() as peak:
        start, cpu = time.perf_counter(), time.process_time()
        _, params = open_model(folder).load(None if dtype == 'float32' else dtype)
        jax.block_until_ready(params)
        end, cpu = time.perf_counter(), time.process_time() - cpu
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    print(json.dumps({'trace': traced - began, 'load': end - start, 'load_cpu': cpu,
                      'all': end - start + traced - began, 'peak': peak.most / size, 'bytes': size}))


def run(function, *arguments) -> dict:
    """A function of this file in a fresh process."""
    out = subprocess.run([sys.executable, '-c', RUN.format(function), *map(str, arguments)], check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    return json.loads(out) if out else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--dtypes', nargs='*', default=['float32', 'float16'])
    parser.add_argument('--out', help='a JSON file')
    args = parser.parse_args()
    rows = []
    for dtype in args.dtypes:
        with tempfile.TemporaryDirectory() as folder:
            run('write', folder, dtype)
            path = Path(folder) / 'diffusion_pytorch_model.safetensors'
            run('read', path)
            found = []
            for _ in range(args.runs):  # in turn, so that both meet the same machine
                found.append({**run('read', path), **run('load', folder, dtype)})
        row = {k: min(f[k] for f in found) for k in found[0] if k not in ('peak', 'bytes')}
        row |= {'dtype': dtype, 'bytes': found[0]['bytes'], 'peak': max(f['peak'] for f in found),
                'ratio': min(f['load'] / f['read'] for f in found), 'ratio_again': min(
                    f['load'] / f['again'] for f in found), 'ratio_cpu': min(
                    f['load_cpu'] / f['read_cpu'] for f in found)}
        rows.append(row)
        print(json.dumps(row))
    if args.out:
        Path(args.out).write_text(json.dumps({'python': platform.python_version(), 'cores': os.cpu_count(),
                                              'rows': rows}, indent=1) + '\n')


if __name__ == '__main__':
    main()
