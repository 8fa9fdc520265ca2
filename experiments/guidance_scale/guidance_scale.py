"""Classifier-free guidance trades diversity for fidelity: one trained model, scales from 1 to 8.

    python -m experiments.study guidance_scale --workdir runs/guidance_scale
"""

from itertools import pairwise

from gen_jax.config import load_config

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
SEEDS = (0, 1, 2)
MORE_SEEDS, HEADLINE = (3, 4), (1.0, 1.5)  # more for the pair that the claim of an optimum is about


def get_config(arg=''):
    """Arguments: debug."""
    debug = 'debug' in arg.split(',')
    c = load_config('digits:eps,debug' if debug else 'digits:eps')
    with c.unlocked():
        if not debug:
            c.system.network.block_out_channels = (32, 32)
        c.sample.every_steps = 0  # the evaluations show pictures
        guided = c.evaluate.guided
        guided.n = guided.batch_size = 20 if debug else 1000
        c.evaluate = {'generate': guided}
    return c


def sweep(add, arg=''):
    debug = 'debug' in arg.split(',')
    model = add()
    for seed in SEEDS[:2] if debug else SEEDS + MORE_SEEDS:
        for scale in SCALES[1:3] if debug else SCALES:
            if seed in SEEDS or scale in HEADLINE:
                add({'evaluate.generate.settings.guidance_scale': scale, 'evaluate.generate.seed': seed}, of=model)


def scale_of(run):
    """The guidance scale of an evaluation; None of the training."""
    return run.overrides.get('evaluate.generate.settings.guidance_scale')


METRICS = {'generate/accuracy': ('read as asked', 3), 'generate/frechet': ('Fréchet distance', 2),
           'generate/nearest_train': ('nearest training digit', 2)}


def tables(report):
    """[(caption, rows)]: every metric by scale."""
    from experiments.study import differences, estimates, text
    found = {name: estimates(report, name, scale_of) for name in METRICS}
    scales = sorted({s for cells in found.values() for s in cells})
    rows = [{'guidance scale': f'{scale:g}', **{label: text(found[name][scale], digits)
                                                for name, (label, digits) in METRICS.items()}} for scale in scales]
    steps = differences(report, 'generate/frechet', scale_of, 'evaluate.generate.seed', list(pairwise(SCALES[::-1])))
    return [(f'Mean ± standard error over {report.seed_words}:', rows),
            ('Fréchet distance, first scale minus second over the same seeds:', steps)]


def plots(report):
    """(plot, columns) for `experiments.study.figure`: fidelity against diversity, and both against the scale."""
    from experiments.study import draw, estimates
    accuracy, frechet = (estimates(report, f'generate/{name}', scale_of) for name in ('accuracy', 'frechet'))

    def plot(left, right):
        left.plot([frechet[s].mean for s in sorted(frechet)], [accuracy[s].mean for s in sorted(frechet)], 'o-', ms=4)
        for s in frechet:
            left.annotate(f'{s:g}', (frechet[s].mean, accuracy[s].mean), textcoords='offset points', xytext=(5, -9),
                          fontsize=8)
        left.set(xlabel='Fréchet distance (diversity: lower is better)', ylabel='read as the class asked for')
        draw(right, {'Fréchet distance': list(frechet.items())})
        right.set(xlabel='guidance scale', ylabel='Fréchet distance')
        for axes in (left, right):
            axes.grid(alpha=0.25)

    return plot, 2
