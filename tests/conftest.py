"""Eight virtual CPU devices and one compilation cache for the whole suite; said before JAX starts its backend."""

import fcntl
import os
from importlib.metadata import version
from pathlib import Path

# Eight devices on fewer cores: XLA's threads, one per device by default, can all come to wait in collectives of which
# each lacks somebody, and the process is aborted after 40 s. More threads than devices cannot.
os.environ.setdefault('NPROC', '64')
# Most programs here run once. Where `make test` leaves LLVM's optimisations out, the emitters that XLA had before, one
# module at a time, halve what is left of compiling; jaxlib 0.11 has them no more, and ends at an unknown flag.
if '--xla_backend_optimization_level=0' in os.environ.get('XLA_FLAGS', '') and version('jaxlib').startswith('0.10.'):
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
# Small programs too are in the cache below: reading one takes a third of compiling it, and they are the most.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)

# Processes that tests start, and the workers of pytest-xdist, share what has been compiled.
CACHE = Path(os.environ.setdefault('GEN_JAX_CACHE', str(Path(__file__).parent.parent / '.pytest_cache' / 'xla')))
jax.config.update('jax_compilation_cache_dir', str(CACHE))
# This starts the backend: later wishes for another number of devices, as the commands have, come too late.
assert jax.device_count() == 8


def pytest_collection_modifyitems(items):
    """What is dear to prepare goes first: `--dist worksteal` gives the last tests of a worker to the other one, which
    would prepare it a second time."""
    items.sort(key=lambda item: item.path.name not in ('test_latent_diffusion.py', 'test_two_processes.py'))


@pytest.fixture(scope='session')
def once(tmp_path_factory):
    """once(name, make) -> folder: filled by make(folder) in the first worker of pytest-xdist that asks, read by all."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'once'
    root.mkdir(exist_ok=True)

    def get(name, make):
        folder, done = root / name, root / f'{name}.done'
        with open(root / f'{name}.lock', 'w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return get
