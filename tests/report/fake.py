"""Run folders as `gen-jax train`, `evaluate` and `sweep` write them, made up in milliseconds: curves, several seeds,
real PNG files. Deterministic."""

import itertools
import json
from pathlib import Path

import numpy as np

from gen_jax.config import base_config, to_json
from gen_jax.engine.images import grid, save_png

VERSIONS = {'python': '3.11.7', 'platform': 'Linux-6.1-x86_64', 'backend': 'cpu', 'devices': 'cpu x2',
            'gen_jax': '0.1.0', 'jax': '0.10.2', 'numpy': '2.4.6', 'git': '8e49818'}
CARD = {'n': 1000, 'train_n': 1500, 'heldout_n': 297, 'features': 'decision values of an SVM (rbf, gamma 0.001, C 10)'}


def config(**overrides):
    """A config as it stands in config.json; overrides by dotted key with `__` for the dot."""
    c = base_config()
    c.system = {'name': 'systems.diffusion', 'solver': 'ddim', 'image_shape': (8, 8, 1),
                'weighting': {'name': 'diffusion.weighting.simple'}}
    c.data.source = 'digits'
    c.train.steps = 600
    c.evaluate = {'guided': {'predict': 'generate', 'on': 'labels', 'n': 1000, 'seed': 0, 'every_steps': 0,
                             'metrics': ('digits_report',), 'settings': {'steps': 30, 'guidance_scale': 2.0}},
                  'heldout': {'predict': 'losses', 'metrics': ({'name': 'mean', 'key': 'loss'},), 'every_steps': 100}}
    with c.ignore_type(), c.unlocked():
        for key, value in overrides.items():
            parent, _, leaf = key.replace('__', '.').rpartition('.')
            (c[parent] if parent else c)[leaf] = value
    return c


def digits(seed: int, sharpness: float, n: int = 20) -> np.ndarray:
    """Blobs, the same for the same seed but for how sharp they are: uint8 [n, 8, 8, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:8, :8]
    out = []
    for _ in range(n):
        centres, noise = rng.uniform(1.5, 6, (3, 2)), rng.normal(size=(8, 8))
        blob = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 1.5) for a, b in centres)
        out.append(np.clip(255 * (blob + 0.35 * noise / sharpness), 0, 255))
    return np.stack(out)[..., None].astype(np.uint8)


def write(path: Path, c, rows=(), scores=None, run=None, checkpoint=True, versions=VERSIONS, pictures=None) -> Path:
    """One run folder; whatever is None or empty is not written."""
    path.mkdir(parents=True, exist_ok=True)
    if c is not None:
        (path / 'config.json').write_text(to_json(c))
    if rows:
        (path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    if scores:
        (path / 'evaluation.json').write_text(json.dumps(scores, indent=1))
    if run:
        (path / 'run.json').write_text(json.dumps(run, indent=1))
    if versions:
        (path / 'versions.json').write_text(json.dumps(versions, indent=1))
    if checkpoint:
        (path / 'checkpoints' / str(rows[-1]['step'] if rows else 0)).mkdir(parents=True)
    for name, images in (pictures or {}).items():
        save_png(path / name, grid(images, columns=10, scale=None))
    return path


def curve(rng, quality: float, steps: int = 600, every: int = 50, started: float = 1.7e9) -> list[dict]:
    """Rows of metrics.jsonl: a loss that falls as powers of the step; what is held out, every 100, overfits at last."""
    rows = []
    for step in range(every, steps + 1, every):
        base = 0.12 / quality + 0.9 * (step / 20) ** -0.7
        rate = float(rng.normal(2.5, 0.1))
        rows.append({'step': step, 'denoise/loss': base * float(np.exp(rng.normal(0, 0.05))), 'unet/lr': 1e-3,
                     'steps_per_second': rate, 'images_per_second': 128 * rate, 'time': started + step / rate})
        if step % 100 == 0:
            held = base * (1.1 if step > 500 else 1.05) * float(np.exp(rng.normal(0, 0.01)))
            rows.append({'step': step, 'heldout/loss': held, 'heldout/loss_stderr': 0.004,
                         'heldout/loss_recipe': {'n': 297, 'of': 'loss'}, 'time': started + step / rate + 1})
    return rows


def scores(rng, frechet: float, step=600, seed=0, settings=None, picture='evaluation-guided.png', nfe=None) -> dict:
    """evaluation.json of one evaluation, guided."""
    settings = {'solver': 'ddim', 'steps': 30, 'guidance_scale': 2.0, **(settings or {})}
    value = frechet * float(np.exp(rng.normal(0, 0.03)))
    recipe = {'predict': 'generate', 'split': 'test', 'n': 1000, 'ema': 'slow', 'seed': seed, 'step': step,
              'settings': settings, **({'nfe': nfe} if nfe else {})}
    return {'step': step, 'guided': {
        'frechet': value, 'accuracy': float(np.clip(1.004 - 0.012 * value + rng.normal(0, 0.001), 0, 1)),
        'accuracy_heldout': 0.9899, 'class_fraction': [0.1] * 10, 'digits_recipe': CARD, 'recipe': recipe,
        **({'pictures': picture} if picture else {})}}


def training_sweep(path: Path, seeds=(0, 1, 2), lrs=(0.0003, 0.001, 0.003), weightings=('simple', 'min_snr')) -> Path:
    """Learning rates x weightings x training seeds, each trained and scored."""
    path.mkdir(parents=True, exist_ok=True)
    (path / 'sweep.json').write_text(json.dumps({'config': 'digits', 'overrides': []}))
    for weighting, lr, seed in itertools.product(weightings, lrs, seeds):
        rng = np.random.default_rng([seed, int(lr * 1e5), len(weighting)])
        quality = {0.0003: 0.8, 0.001: 1.0, 0.003: 0.93}.get(lr, 1) * (1.06 if weighting == 'min_snr' else 1)
        overrides = {'optim.lr': lr, 'seed': seed, 'system.weighting.name': f'diffusion.weighting.{weighting}'}
        c = config(optim__lr=lr, seed=seed, system__weighting__name=overrides['system.weighting.name'])
        name = f'lr={lr:g},seed={seed},weighting={weighting}'
        rows = curve(rng, quality * float(np.exp(rng.normal(0, 0.02))))
        write(path / 'runs' / name, c, rows, scores(rng, 1.3 / quality**3),
              {'id': name, 'config': 'digits', 'overrides': overrides, 'of': None, 'status': 'done', 'error': None,
               'seconds': 241.0 + seed, 'attempts': 1},
              pictures={'evaluation-guided.png': digits(0, quality * 2),
                        'samples/samples-00000600.png': digits(5, quality)})
    return path


CALLS = {'ddim': 1, 'heun': 2, 'ddpm': 1, 'dpmpp_2m': 1}


def sampling_sweep(path: Path, seeds=(0, 1, 2), steps=(5, 10, 20, 50), solvers=tuple(CALLS)) -> Path:
    """Evaluations of one checkpoint: solvers x steps x sampling seeds."""
    path.mkdir(parents=True, exist_ok=True)
    (path / 'sweep.json').write_text(json.dumps({'config': 'digits', 'overrides': []}))
    strength = {'ddim': 12, 'heun': 22, 'ddpm': 60, 'dpmpp_2m': 6}
    for solver, n, seed in itertools.product(solvers, steps, seeds):
        rng = np.random.default_rng([seed, n, len(solver)])
        frechet = 1.1 + strength[solver] / n / CALLS[solver]
        prefix = 'evaluate.guided'
        overrides = {f'{prefix}.settings.steps': n, f'{prefix}.settings.solver': solver, f'{prefix}.seed': seed}
        name = f'seed={seed},solver={solver},steps={n}'
        write(path / 'runs' / name, config(**{k.replace('.', '__'): v for k, v in overrides.items()}),
              scores=scores(rng, frechet, seed=seed, settings={'solver': solver, 'steps': n}, nfe=n * CALLS[solver]),
              run={'id': name, 'config': 'digits', 'overrides': overrides, 'of': 'base', 'status': 'done',
                   'error': None, 'seconds': 3.0 + n / 10, 'attempts': 1}, checkpoint=False,
              pictures={'evaluation-guided.png': digits(seed, 4 / frechet)})
    return path
