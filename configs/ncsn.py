"""NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): score networks, annealed Langevin dynamics; unconditional.

    gen-jax train --config ncsn --workdir runs/ncsn                     # CIFAR-10, after `tfds build cifar10`
    gen-jax train --config ncsn:v2 --workdir runs/ncsnv2
    gen-jax train --config ncsn:loss=sliced --workdir runs/ssm          # sliced score matching at every noise level

Published on CIFAR-10: NCSN FID 25.32, Inception Score 8.87; NCSNv2 FID 10.87 with the denoising step. Not trained to
the end by us. Sampling starts from normal noise of the greatest sigma (NCSN's code: from uniform noise).
"""

from gen_jax.config import base_config, parse_arg, shrink


def get_config(arg=''):
    """Arguments: version 'v1' | 'v2'; loss 'denoising' | 'sliced'; debug."""
    arg = parse_arg(arg, version=('v1', 'v2'), loss=('denoising', 'sliced'), debug=False)
    v2 = arg.version == 'v2'
    n = 232 if v2 else 10
    c = base_config()
    c.data.source = 'tfds:cifar10'
    c.data.batch_size = 128
    c.data.transforms = ({'name': 'random_flip'},)
    c.data.eval_transforms = ({'name': 'keep', 'keys': ('image',)},)
    c.system = {
        'name': 'systems.diffusion',
        'process': {'name': 'diffusion.discrete_ve', 'sigma_max': 50.0 if v2 else 1.0, 'sigma_min': 0.01, 'n': n},
        'times': {'name': 'diffusion.times.discrete_uniform'},
        'parameterisation': {'name': 'diffusion.parameterisation.score', 'label': 'descending'},
        'weighting': {'name': 'diffusion.weighting.sigma_power', 'power': 2.0},
        'network': {'name': f'models.{"ncsnv2" if v2 else "ncsn"}_cifar10', 'center_input_sample': True},
        'image_shape': (32, 32, 3),
        'image_range': (0.0, 1.0),
        'clip': None,
        'dequantise': True,
        'solver': 'ncsn',
        'spacing': 'linspace',  # every row of the table, then the data
        'steps': n,
        # eps of Algorithm 1; the published code's step_lr is half of it
        'settings': {'n_steps': 5, 'eps': 1.24e-5, 'sigma_min': 0.01, 'denoise_last': True} if v2 else
                    {'n_steps': 100, 'eps': 4e-5, 'sigma_min': 0.01},
    }
    if arg.loss == 'sliced':
        c.system.loss = {'name': 'diffusion.losses.sliced_score'}
    c.optim.lr = 1e-4 if v2 else 1e-3
    c.train.steps = 300_000 if v2 else 200_000
    c.train.ema = {'slow': {'decay': 0.999, 'warmup': False}} if v2 else {}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 5000
    c.sample.n = 64
    c.sample.columns = 8
    c.sample.every_steps = 10_000
    c.evaluate = {'heldout': {'predict': 'losses', 'metrics': ({'name': 'mean', 'key': 'loss'},),
                              'every_steps': 10_000}}
    if arg.debug:
        shrink(c)
        c.system.process.n = c.system.steps = 3
        c.system.network = {'name': f'models.{"ncsnv2" if v2 else "ncsn"}_digits', 'ngf': 8, 'num_classes': 3,
                            'center_input_sample': True}
        c.system.settings.n_steps = 2
    return c
