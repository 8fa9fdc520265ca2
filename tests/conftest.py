"""Eight virtual CPU devices for the whole suite; it must be said before JAX starts its backend."""

import jax

jax.config.update('jax_num_cpu_devices', 8)
