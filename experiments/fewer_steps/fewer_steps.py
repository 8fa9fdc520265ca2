"""How good are few steps? One trained DDPM, eight ways to sample it, five budgets of network calls.

    python -m experiments.study fewer_steps --workdir runs/fewer_steps

The process is the paper's (Ho et al. 2020): the linear table of 1,000 betas, eps-prediction; the network is the
UNet of `digits` at half the width, so that the whole study takes half an hour on 2 CPU cores.
"""

from gen_jax.config import load_config

TABLE = {'name': 'diffusion.discrete_ddpm', 'schedule': 'linear', 'steps': 1000}
# label -> (settings of the predict, calls per step). As published: ancestral sampling clips x0 and, like DDIM, walks
# the 'leading' steps of the papers' code; EDM's solvers walk their own grid; nothing else is clipped.
SOLVERS = {
    'DDPM, ancestral': ({'solver': 'ddpm', 'variance': 'fixed_large', 'spacing': 'leading'}, 1),
    'DDIM, eta 1': ({'solver': 'ddim', 'eta': 1.0, 'spacing': 'leading', 'threshold': 'none'}, 1),
    'DDIM, eta 0.5': ({'solver': 'ddim', 'eta': 0.5, 'spacing': 'leading', 'threshold': 'none'}, 1),
    'DDIM, eta 0': ({'solver': 'ddim', 'eta': 0.0, 'spacing': 'leading', 'threshold': 'none'}, 1),
    'Euler': ({'solver': 'euler', 'spacing': 'karras', 'threshold': 'none'}, 1),
    'Heun': ({'solver': 'heun', 'spacing': 'karras', 'threshold': 'none'}, 2),
    'DPM-Solver++ 2M': ({'solver': 'dpmpp_2m', 'spacing': 'trailing', 'threshold': 'none'}, 1),
    'UniPC': ({'solver': 'unipc', 'spacing': 'trailing', 'threshold': 'none'}, 1),
}
BUDGETS = (5, 10, 20, 50, 100)
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4)  # for what the claim is about: few steps of these
HEADLINE, FEW = ('DDPM, ancestral', 'DDIM, eta 0', 'DPM-Solver++ 2M'), (5, 10, 20)
PAIRS = [((a, n), (b, n)) for n in BUDGETS for a, b in (
    ('DDIM, eta 0', 'DDIM, eta 1'), ('DDIM, eta 0', 'DDPM, ancestral'), ('DPM-Solver++ 2M', 'DDIM, eta 0'))]


def steps_within(calls, per_step):
    """Steps whose network calls fit: Heun's last step to the data needs one call only."""
    return calls if per_step == 1 else (calls + 1) // 2


def get_config(arg=''):
    """Arguments: debug."""
    debug = 'debug' in arg.split(',')
    c = load_config('digits:eps,debug' if debug else 'digits:eps')
    with c.unlocked():
        c.system.process = TABLE
        c.system.times = {'name': 'diffusion.times.discrete_uniform'}
        c.system.spacing = 'trailing'
        c.system.max_steps = 1000
        if not debug:
            c.system.network.block_out_channels = (32, 32)
        c.sample.every_steps = 0  # the evaluations show pictures
        c.sample.settings.steps = 4 if debug else 50
        generate = c.evaluate.unguided
        generate.n = generate.batch_size = 20 if debug else 500
        c.evaluate = {'generate': generate}
    return c


def sweep(add, arg=''):
    debug = 'debug' in arg.split(',')
    model = add()
    for seed in SEEDS[:2] if debug else SEEDS + MORE_SEEDS:
        for label, (settings, per_step) in list(SOLVERS.items())[:2] if debug else SOLVERS.items():
            for calls in (2, 3) if debug else BUDGETS:
                steps = steps_within(calls, per_step)
                if seed in SEEDS or label in HEADLINE and calls in FEW:
                    add({'evaluate.generate.settings': {**settings, 'steps': steps}, 'evaluate.generate.seed': seed},
                        of=model)
    for label in () if debug else ('DDPM, ancestral', 'DDIM, eta 1'):
        add({'evaluate.generate.settings': {**SOLVERS[label][0], 'steps': 1000}, 'evaluate.generate.seed': 0}, of=model)


def label_and_budget(run):
    """('DDIM, eta 0', 10) of an evaluation; None of the training."""
    settings = dict(run.overrides.get('evaluate.generate.settings', {}))
    steps = settings.pop('steps', None)
    for label, (own, per_step) in SOLVERS.items():
        if settings == own:
            fits = [b for b in (*BUDGETS, 1000, 2, 3) if steps_within(b, per_step) == steps]
            return (label, fits[0]) if fits else None
    return None


def tables(report):
    """[(caption, rows)]: Fréchet distance and accuracy by solver and budget, and the pairs that the claim is about."""
    from experiments.study import differences, estimates, text
    found = []
    for metric, caption, digits in (('generate/frechet', 'Fréchet distance', 2),
                                    ('generate/accuracy', 'Read as the class asked for', 3)):
        cells = estimates(report, metric, label_and_budget)
        budgets = sorted({b for _, b in cells})
        rows = [{'solver': label, **{f'NFE {b}': text(cells[label, b], digits) if (label, b) in cells else '–'
                                     for b in budgets}} for label in SOLVERS if any(k[0] == label for k in cells)]
        found.append((f'{caption}, mean ± standard error over {report.seed_words}:', rows))
    rows = differences(report, 'generate/frechet', label_and_budget, 'evaluate.generate.seed', PAIRS)
    return [*found, ('Fréchet distance, first minus second over the same seeds:', rows)]


def plots(report):
    """(plot, columns) for `experiments.study.figure`."""
    from experiments.study import draw, estimates
    cells = estimates(report, 'generate/frechet', label_and_budget)

    def plot(axes):
        curves = {label: [(b, e) for (name, b), e in cells.items() if name == label] for label in SOLVERS}
        draw(axes, {k: v for k, v in curves.items() if v},
             {k: {'linestyle': '--'} for k in ('DDPM, ancestral', 'DDIM, eta 1', 'DDIM, eta 0.5')})
        means = sorted(e.mean for e in cells.values())  # the worst may be off the top
        axes.set(ylim=(0.9 * means[0], 1.2 * means[-2:][0]))
        axes.set(xscale='log', yscale='log', xlabel='evaluations of the network', ylabel='Fréchet distance')
        axes.legend(fontsize=7)
        axes.grid(alpha=0.25)

    return plot, 1
