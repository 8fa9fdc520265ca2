"""Eight virtual CPU devices and one compilation cache for the whole suite; said before JAX starts its backend."""

import os
from pathlib import Path

# Eight devices on fewer cores: XLA's threads, one per device by default, can all come to wait in collectives of which
# each lacks somebody, and the process is aborted after 40 s. More threads than devices cannot.
os.environ.setdefault('NPROC', '64')

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)

# Processes that tests start, and the workers of pytest-xdist, share what has been compiled.
CACHE = Path(os.environ.setdefault('GEN_JAX_CACHE', str(Path(__file__).parent.parent / '.pytest_cache' / 'xla')))
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
# This starts the backend: later wishes for another number of devices, as the commands have, come too late.
assert jax.device_count() == 8
