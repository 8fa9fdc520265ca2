"""What a network is asked for, and how its errors are weighted: equal budget, equal network, three seeds of training.

    python -m experiments.study training_choices --workdir runs/training_choices

A UNet of 0.18 M parameters on a continuous cosine process; only the parameterisation and the weighting differ, and in
the last row the distribution of training times, which belongs to EDM's choices.
"""

from gen_jax.config import load_config, parse_arg

SIGMA_DATA = 0.7
PARAMETERISATIONS = {
    'eps': {'name': 'diffusion.parameterisation.eps'},
    'x0': {'name': 'diffusion.parameterisation.x0'},
    'v': {'name': 'diffusion.parameterisation.v'},
    'edm': {'name': 'diffusion.parameterisation.edm', 'sigma_data': SIGMA_DATA},
}
WEIGHTINGS = ('simple', 'min_snr', 'edm')
LOG_NORMAL = {'name': 'diffusion.times.log_normal', 'mean': -0.9, 'std': 1.2}
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4)
HEADLINE = (('eps', 'simple', 'uniform'), ('edm', 'edm', 'uniform'))


def weighting_for(name, target):
    """A weighting of the x0 error, in the space of the network's target; 'simple' is that target's own."""
    if name == 'simple':
        return {'name': 'diffusion.weighting.simple'}
    spec = {'name': f'diffusion.weighting.{name}', 'target': target}
    return {**spec, 'sigma_data': SIGMA_DATA} if 'edm' in (name, target) else spec


def get_config(arg=''):
    """Arguments: target 'eps' | 'x0' | 'v' | 'edm'; weighting 'simple' | 'min_snr' | 'edm'; times 'uniform' |
    'log_normal'; debug."""
    arg = parse_arg(arg, target=tuple(PARAMETERISATIONS), weighting=WEIGHTINGS, times=('uniform', 'log_normal'),
                    debug=False)
    c = load_config('digits:debug' if arg.debug else 'digits')
    with c.unlocked():
        c.system.parameterisation = PARAMETERISATIONS[arg.target]
        c.system.weighting = weighting_for(arg.weighting, arg.target)
        if arg.times == 'log_normal':
            c.system.times = LOG_NORMAL
        generate = c.evaluate.unguided
        generate.settings = {'steps': 2 if arg.debug else 20}
        generate.n = generate.batch_size = 20 if arg.debug else 500
        generate.every_steps = 2 if arg.debug else 150
        c.evaluate = {'generate': generate}
        c.sample.every_steps = None
        if not arg.debug:
            c.system.network.block_out_channels = (24, 24)
            c.data.batch_size = 64
            c.train.steps = 600
            c.checkpoint.every_steps = 300
    return c


def sweep(add, arg=''):
    debug = 'debug' in arg.split(',')
    choices = [(target, weighting, 'uniform') for target in PARAMETERISATIONS for weighting in WEIGHTINGS]
    choices.append(('edm', 'edm', 'log_normal'))
    for seed in SEEDS[:2] if debug else SEEDS + MORE_SEEDS:
        for choice in choices[:2] if debug else choices:
            if seed in SEEDS or choice in HEADLINE:
                add({'seed': seed}, arg='target={},weighting={},times={}'.format(*choice))
