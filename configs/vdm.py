"""Variational diffusion models (Kingma et al. 2021): the noise schedule is learned, and the loss is a likelihood.

    gen-jax train --config vdm --workdir runs/vdm                       # CIFAR-10, after `tfds build cifar10`
    gen-jax train --config vdm:imagenet64 --workdir runs/vdm64
    gen-jax train --config vdm:digits --workdir runs/vdm-digits
    gen-jax evaluate --workdir runs/vdm                                 # bits/dim on the test split

Published bits/dim: CIFAR-10 2.65 (2.49 with augmentation), ImageNet 32 3.72, ImageNet 64 3.40, after 10 M steps for
CIFAR-10. Not trained to the end by us. `vdm:digits` (9 minutes on 2 CPU cores): ours 1.83 bits/dim on 297 held-out
digits of 17 grey levels (a uniform code costs 4.09).
"""

from gen_jax.config import base_config, parse_arg, shrink

VARIANTS = {
    'cifar10': {'source': 'tfds:cifar10', 'size': 32, 'network': {'name': 'models.vdm_cifar10'}, 'batch': 128,
                'steps': 10_000_000},
    'cifar10-aug': {'source': 'tfds:cifar10', 'size': 32, 'network': {'name': 'models.vdm_cifar10_aug'}, 'batch': 128,
                    'steps': 10_000_000, 'flip': True},
    'imagenet32': {'source': 'tfds:downsampled_imagenet/32x32', 'size': 32, 'batch': 512, 'steps': 2_000_000,
                   'network': {'name': 'models.vdm_imagenet32'}, 'eval_split': 'validation'},
    'imagenet64': {'source': 'tfds:downsampled_imagenet/64x64', 'size': 64, 'batch': 512, 'steps': 2_000_000,
                   'network': {'name': 'models.vdm_imagenet64'}, 'eval_split': 'validation'},
    'digits': {'source': 'digits', 'size': 8, 'batch': 128, 'network': {'name': 'models.vdm_digits'}, 'steps': 1200},
}


def get_config(arg=''):
    """Arguments: variant 'cifar10' | 'cifar10-aug' | 'imagenet32' | 'imagenet64' | 'digits'; timesteps (0: continuous
    time); debug."""
    arg = parse_arg(arg, variant=tuple(VARIANTS), timesteps=0, debug=False)
    d = VARIANTS[arg.variant]
    small = arg.variant == 'digits'
    c = base_config()
    c.data.source = d['source']
    c.data.eval_split = d.get('eval_split', 'test')
    c.data.batch_size = d['batch']
    if 'flip' in d:
        c.data.transforms = ({'name': 'random_flip'},)
        c.data.eval_transforms = ({'name': 'keep', 'keys': ('image',)},)
    c.system = {
        'name': 'systems.vdm',
        'network': d['network'],
        'image_shape': (d['size'], d['size'], 1 if small else 3),
        'levels': 17 if small else 256,
        'timesteps': arg.timesteps,
        'steps': 100 if small else 1000,
    }
    c.optim.name = 'adamw'
    c.optim.lr = 2e-3 if small else 2e-4
    c.optim.b2 = 0.99
    c.optim.weight_decay = 0.01
    c.optim.warmup_steps = 50 if small else 100
    c.train.steps = d['steps']
    c.train.ema = {'slow': {'decay': 0.995 if small else 0.9999, 'warmup': True}}
    c.log.every_steps = 50 if small else 100
    c.checkpoint.every_steps = 400 if small else 10_000
    c.sample.n = 100 if small else 64
    c.sample.every_steps = None if small else 50_000
    c.evaluate = {'bits': {'predict': 'bpd', 'metrics': ({'name': 'mean', 'key': 'bits_per_dim'},), 'every_steps': 0,
                           'settings': {'samples': 128}}}
    if small:
        c.evaluate.generate = {'predict': 'generate', 'on': 'labels', 'n': 1000, 'batch_size': 500, 'every_steps': 0,
                               'metrics': ('digits_report',)}
    if arg.debug:
        shrink(c)
        c.system.network = {'name': 'models.vdm_tiny'}
        c.system.levels = 17
        c.system.steps = 3
        c.evaluate.bits.settings.samples = 4
    return c
