"""Does the text encoder tell what is left of what, and does the UNet listen? Captions of `shapes` with words exchanged.

    python -m experiments.text_probe runs/latent_diffusion/ldm

For cached training scenes of two objects whose caption has its relation reversed, or its sizes, colours or shapes
exchanged: how far the text's hidden states move (mean norm of the difference behind the first changed token), and by
how much the UNet's squared error rises at each time (rectified flow, x0 of unit variance, the same noise), with the
share of scenes for which it rises. `nothing` is the empty caption. Last, how often the objects of another scene happen
to stand as the caption says.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import gen_jax
from gen_jax.build import open_split
from gen_jax.config import make
from gen_jax.data.hard_negatives import exchange_words
from gen_jax.data.shapes import shapes
from gen_jax.data.shapes_captions import RELATIONS, main_relation, relations
from gen_jax.data.shapes_render import COLOUR_NAMES, SHAPES, SIZES
from gen_jax.data.text_cache import open_text_cache

CHANGES = {'relation': (RELATIONS[:2], RELATIONS[2:]), 'sizes': (SIZES,), 'colours': (COLOUR_NAMES,),
           'shapes': (SHAPES,)}
TIMES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def scenes(config, cache, n: int):
    """Latents [n, H, W, C] of unit variance, and the texts' states [n, L, C] by change: '' is the true caption."""
    source, _ = open_split(config, 'train')
    rng, x0, states = np.random.default_rng(0), [], {k: [] for k in ('', *CHANGES, 'nothing')}
    for i in range(len(source)):
        example = source[i]
        text = example['captions'][0]
        changed = {k: exchange_words(text, groups, rng) for k, groups in CHANGES.items()}
        # Scenes of one object have no relation; captions of pairs of shape and colour that are left out are not cached.
        if not all(other in cache.rows for other in changed.values()):
            continue
        x0.append(example['mean'])
        for key, other in {'': text, **changed, 'nothing': ''}.items():
            states[key].append(np.asarray(cache[other][0], np.float32))
        if len(x0) == n:
            return np.stack(x0) / np.std(x0), {k: np.stack(v) for k, v in states.items()}
    raise SystemExit(f'the cache has only {len(x0)} such scenes, {n} were asked for')


def chance(n: int = 2000) -> float:
    """The share of scenes of two objects in which the relation of the next one's caption holds."""
    source = shapes('test', min_objects=2, max_objects=2, size=n, fields=('label',))
    things = [source.scene(i).things for i in range(n)]
    hold = [{name for i, name, _ in relations(pair) if i == 0} for pair in things]
    return float(np.mean([main_relation(*things[i - 1]) in hold[i] for i in range(n)]))


def main(argv=None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('workdir', help='of a run of shapes_ldm')
    p.add_argument('--n', type=int, default=256, help='scenes')
    args = p.parse_args(argv)
    run = gen_jax.load(args.workdir)
    network = make(run.config.system.network, 'models')
    x0, states = scenes(run.config, open_text_cache(run.config.data.transforms[0]['folder']), args.n)
    z = np.random.default_rng(1).standard_normal(x0.shape).astype(np.float32)

    moved = {k: np.linalg.norm(v - states[''], axis=-1) for k, v in states.items() if k in CHANGES}
    print(f'norm of the states {np.linalg.norm(states[""], axis=-1).mean():.2f}; moved by ' + ', '.join(
        f'{k} {np.mean([row[np.flatnonzero(row)[1:]].mean() for row in v]):.2f}' for k, v in moved.items()))

    @jax.jit
    def error(t, text):
        velocity = network.apply({'params': run.variables.params['unet']}, (1 - t) * x0 + t * z,
                                 jnp.full(len(x0), 1000.0 * t), text)
        return ((velocity - (z - x0)) ** 2).mean((1, 2, 3))

    for t in TIMES:
        errors = {k: np.asarray(error(t, v)) for k, v in states.items()}
        true = errors.pop('')
        print(f't = {t:<4g}  error {true.mean():.4f}  ' + '  '.join(
            f'{k} {(e - true).mean():+.4f} ({100 * (e > true).mean():.0f} %)' for k, e in errors.items()))
    print(f'by chance the relation holds in {100 * chance():.1f} %')


if __name__ == '__main__':
    main()
