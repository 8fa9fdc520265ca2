"""Network calls of whole grids, against counting by hand and against every row's declaration."""

import pytest

from gen_jax import diffusion, sampling
from gen_jax.sampling.count import network_calls

TABLE = diffusion.discrete_ddpm()


@pytest.mark.parametrize('sampler,expected', [
    (sampling.ddim(), {1: 1, 5: 5, 1000: 1000}),
    (sampling.heun(), {1: 1, 5: 9, 50: 99}),  # the step to the data is Euler's
    (sampling.plms(), {1: 1, 5: 6, 100: 101}),  # Heun's first step
    (sampling.pndm(TABLE, skip_prk_steps=False), {5: 14, 50: 59}),  # three steps of Runge and Kutta
    (sampling.dpm_solver_interleaved(3), {7: 7, 50: 50}),
    (sampling.chain(sampling.repeat(sampling.langevin(), 2), sampling.euler()), {4: 12, 40: 120}),
], ids=lambda value: value if isinstance(value, str) else '')
def test_calls_by_hand(sampler, expected):
    found = {n: network_calls(sampler, sampling.grid(TABLE, n, 'trailing', max_steps=1000)) for n in expected}
    assert found == expected
