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
ORDER = [(target, weighting, 'uniform') for target in PARAMETERISATIONS for weighting in WEIGHTINGS]
ORDER.append(('edm', 'edm', 'log_normal'))
HEADLINE = (('eps', 'simple', 'uniform'), ('edm', 'edm', 'uniform'))
PAIRS = (HEADLINE, (HEADLINE[0], ('eps', 'min_snr', 'uniform')), (HEADLINE[0], ('v', 'simple', 'uniform')),
         (('x0', 'simple', 'uniform'), ('x0', 'min_snr', 'uniform')),
         (('edm', 'simple', 'uniform'), ('edm', 'min_snr', 'uniform')),
         (HEADLINE[1], ('edm', 'edm', 'log_normal')))


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
        c.sample.every_steps = 0  # the evaluations show pictures
        if not arg.debug:
            c.system.network.block_out_channels = (24, 24)
            c.data.batch_size = 64
            c.train.steps = 600
            c.checkpoint.every_steps = 300
    return c


def sweep(add, arg=''):
    debug = 'debug' in arg.split(',')
    for seed in SEEDS[:2] if debug else SEEDS + MORE_SEEDS:
        for choice in ORDER[:2 - seed] if debug else ORDER:
            if seed in SEEDS or choice in HEADLINE:
                add({'seed': seed}, arg='target={},weighting={},times={}'.format(*choice))


def choice_of(run):
    """(target, weighting, times) of a run."""
    arg = dict(part.partition('=')[::2] for part in run.spec.partition(':')[2].split(',') if '=' in part)
    return arg.get('target'), arg.get('weighting'), arg.get('times')


def at_step(report, metric, step):
    """{choice: Estimate over training seeds} at one step of training."""
    from gen_jax.report.statistics import estimate
    found = {}
    for run in report.runs:
        values = dict(run.curves.get(metric, ()))
        if step in values:
            found.setdefault(choice_of(run), []).append(values[step])
    return {choice: estimate(values) for choice, values in found.items()}


def tables(report):
    """[(caption, rows)]: the distance at every evaluation, the accuracy at the end, and the pairs of the claims."""
    from experiments.study import differences, text
    frechet = 'generate/frechet'
    steps = sorted({s for run in report.runs for s, _ in run.curves.get(frechet, ())})
    by_step = {s: at_step(report, frechet, s) for s in steps}
    accuracy = at_step(report, 'generate/accuracy', steps[-1])
    rows = [{'target': c[0], 'weighting': c[1], 'times': c[2].replace('_', '-'), 'n': str(accuracy[c].n),
             **{f'step {s}': text(by_step[s][c]) if c in by_step[s] else '–' for s in steps},
             'read as asked': text(accuracy[c], 3)} for c in sorted(accuracy, key=ORDER.index)]
    return [('Fréchet distance while training, mean ± standard error over training seeds, and the accuracy at the end:',
             rows),
            *[(f'{what} at the end, first minus second:', differences(report, metric, choice_of, 'seed', PAIRS))
              for what, metric in (('Fréchet distance', frechet), ('Accuracy', 'generate/accuracy'))]]


def plots(report):
    """(plot, columns) for `experiments.study.figure`: a panel for each target."""
    from experiments.study import draw
    frechet = 'generate/frechet'
    steps = sorted({s for run in report.runs for s, _ in run.curves.get(frechet, ())})
    by_step = {s: at_step(report, frechet, s) for s in steps}
    targets = [t for t in PARAMETERISATIONS if any(c[0] == t for c in by_step[steps[-1]])]

    def plot(*panels):
        lowest = min(e.mean for cells in by_step.values() for e in cells.values())
        for axes, target in zip(panels, targets, strict=True):
            choices = [c for c in ORDER if c in by_step[steps[-1]] and c[0] == target]
            curves = {}
            for _, w, t in choices:
                points = [(s, by_step[s][target, w, t]) for s in steps if (target, w, t) in by_step[s]]
                off = ', off the top' if min(e.mean for _, e in points) > 4 * lowest else ''
                curves[w + (', log-normal times' if t == 'log_normal' else '') + off] = points
            draw(axes, curves)
            axes.set(title=target, xlabel='training step', ylabel='Fréchet distance', ylim=(0.7 * lowest, 4 * lowest))
            axes.legend(fontsize=7)
            axes.grid(alpha=0.25)

    return plot, len(targets)
