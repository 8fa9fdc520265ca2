"""Classifier-free guidance trades diversity for fidelity: one trained model, scales from 1 to 8.

    python -m experiments.study guidance_scale --workdir runs/guidance_scale
"""

from gen_jax.config import load_config

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
SEEDS = (0, 1, 2)


def get_config(arg=''):
    """Arguments: debug."""
    debug = 'debug' in arg.split(',')
    c = load_config('digits:eps,debug' if debug else 'digits:eps')
    with c.unlocked():
        if not debug:
            c.system.network.block_out_channels = (32, 32)
        guided = c.evaluate.guided
        guided.n = guided.batch_size = 20 if debug else 1000
        c.evaluate = {'generate': guided}
    return c


def sweep(add, arg=''):
    debug = 'debug' in arg.split(',')
    model = add()
    for seed in SEEDS[:2] if debug else SEEDS:
        for scale in SCALES[:2] if debug else SCALES:
            add({'evaluate.generate.settings.guidance_scale': scale, 'evaluate.generate.seed': seed}, of=model)
