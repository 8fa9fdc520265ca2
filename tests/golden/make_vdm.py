"""Prints what the published code of variational diffusion models computes for small random networks, into vdm.npz.

Needs a checkout of the vdm repository (google-research), anywhere below FOLDER, and runs with our own flax:
python tests/golden/make_vdm.py FOLDER

Weights, images and noise are not stored: they are drawn from seeds made of names, here and in the test. Every
parameter is drawn, so that nothing starts at zero and hides a mistake.
"""

import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np

CASES = {
    'scalar': dict(gamma_type='learnable_scalar', with_attention=False, with_fourier_features=True),
    'nnet': dict(gamma_type='learnable_nnet', with_attention=True, with_fourier_features=False),
}
# 64 channels in 32 groups: with one channel in a group, the norms would hide the condition.
COMMON = dict(gamma_min=-13.3, gamma_max=5.0, sm_n_embd=64, sm_n_layer=1, sm_pdrop=0.1)
STEPS = {'scalar': 0, 'nnet': 7}
"""T of the loss, 0 for continuous time."""
TIMES = np.linspace(0, 1, 9, dtype=np.float32)
STEP = 3, 10
"""i and T of one step of ancestral sampling."""


def draw(name: str, shape) -> np.ndarray:
    """Standard normal float32, the same for the same name."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)


def weight(path: str, shape) -> np.ndarray:
    """The value of a parameter, by its path 'score_model/conv_in/kernel', of a magnitude that keeps activations."""
    x = draw(path, shape)
    if path.startswith('gamma'):
        line = {'gamma/w': 15, 'gamma/b': -10, 'gamma/l1/kernel': 12, 'gamma/l1/bias': -8}
        return x + np.float32(line[path]) if path in line else 3 * x
    if path.endswith('kernel'):
        return x / np.float32(np.sqrt(np.prod(shape[:-1])))
    return 1 + 0.3 * x if path.endswith('scale') else 0.3 * x


def inputs() -> dict[str, np.ndarray]:
    """images: levels 0..255 [4, 6, 4, 3]; conditioning [4]; the draws eps_0 and eps [4, 6, 4, 3] and u ()."""
    shape = (4, 6, 4, 3)
    images = np.clip(np.round(128 + 60 * draw('images', shape)), 0, 255).astype(np.int32)
    return dict(images=images, conditioning=np.array([0, 1, 0.5, 3], np.float32), eps_0=draw('eps_0', shape),
                eps=draw('eps', shape), u=np.float32(0.3))


def main(folder: str) -> None:
    import flax
    import jax
    import jax.numpy as jnp

    sys.path.insert(0, str(next(Path(folder).rglob('model_vdm.py')).parent))
    import model_vdm as vdm

    given, out = inputs(), {}
    fixed = dict(vocab_size=256, sample_softmax=False, antithetic_time_sampling=True)
    for name, case in CASES.items():
        model = vdm.VDM(vdm.VDMConfig(**fixed, **COMMON, **case, sm_n_timesteps=STEPS[name]))
        told = dict(images=jnp.asarray(given['images']), conditioning=jnp.asarray(given['conditioning']))
        rngs = {k: jax.random.key(0) for k in ('params', 'sample')}
        shapes = jax.eval_shape(partial(model.init, rngs, **told))['params']
        shapes = flax.traverse_util.flatten_dict(shapes, sep='/')
        params = {k: jnp.asarray(weight(k, v.shape)) for k, v in shapes.items()}
        params = {'params': flax.traverse_util.unflatten_dict(params, sep='/')}
        out[f'{name}/paths'] = np.array(sorted(shapes))

        def gamma(m, t):
            return m.gamma(t)

        def score(m, z, g):
            return m.score_model(z, g, told['conditioning'])  # noqa: B023

        levels = model.apply(params, jnp.asarray(TIMES), method=gamma)
        out[f'{name}/gamma'] = np.asarray(levels)
        out[f'{name}/eps_hat'] = np.asarray(model.apply(params, given['eps'], levels[2:6], method=score))
        draws = iter([given['eps_0'], given['eps']])
        drawers = jax.random.normal, jax.random.uniform
        jax.random.normal = lambda *a, **k: jnp.asarray(next(draws))  # noqa: B023
        jax.random.uniform = lambda *a, **k: jnp.asarray(given['u'])
        try:
            losses = model.apply(params, **told, rngs={'sample': jax.random.key(0)})
            draws = iter([given['eps_0']])
            step = model.apply(params, *STEP, jnp.asarray(given['eps']), told['conditioning'], jax.random.key(0),
                               method='sample')
        finally:
            jax.random.normal, jax.random.uniform = drawers
        for key in ('loss_recon', 'loss_klz', 'loss_diff'):
            out[f'{name}/{key}'] = np.asarray(getattr(losses, key))
        out[f'{name}/step'] = np.asarray(step)
        out[f'{name}/pixels'] = np.asarray(model.apply(params, jnp.asarray(given['eps']), method='generate_x'))
        print(name, {k.split('/')[1]: float(np.abs(v).max()) for k, v in out.items()
                     if k.startswith(name) and v.dtype.kind == 'f'})
    np.savez_compressed(Path(__file__).with_name('vdm.npz'), **out)


if __name__ == '__main__':
    if len(sys.argv) < 2:
        print(f'left as it is: vdm.npz (usage: python {sys.argv[0]} FOLDER, with a checkout of the repository)')
    else:
        main(sys.argv[1])
