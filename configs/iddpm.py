"""Improved DDPM (Nichol & Dhariwal 2021): learned variances, the hybrid loss, the cosine schedule.

    gen-jax train --config iddpm --workdir runs/iddpm                   # CIFAR-10, after `tfds build cifar10`
    gen-jax train --config iddpm:loss=vlb --workdir runs/vlb            # L_vlb, times drawn by their losses
    gen-jax train --config iddpm:dataset=imagenet64 --workdir runs/i64
    gen-jax sample --workdir runs/iddpm --spacing linspace --steps 100

Published: CIFAR-10 FID 2.90 (hybrid, 500,000 steps), 2.94 bits/dim (vlb); ImageNet 64 3.53 bits/dim (vlb, 1.5 M steps).
Not trained to the end by us.
"""

from gen_jax.config import base_config, parse_arg, shrink

DATASETS = {
    'cifar10': {'source': 'tfds:cifar10', 'size': 32, 'network': {'name': 'models.iddpm_cifar10'}, 'batch': 128,
                'lr': 1e-4, 'steps': 500_000},
    'imagenet64': {'source': 'tfds:downsampled_imagenet/64x64', 'size': 64,
                   'network': {'name': 'models.iddpm_imagenet64'}, 'batch': 128, 'lr': 1e-4, 'steps': 1_500_000,
                   'eval_split': 'validation'},
    'imagenet64-cond': {'source': 'tfds:imagenet_resized/64x64', 'size': 64, 'batch': 2048, 'lr': 3e-4,
                        'network': {'name': 'models.iddpm_imagenet64', 'model_channels': 192, 'num_classes': 1000},
                        'steps': 250_000, 'classes': 1000, 'eval_split': 'validation'},
    'lsun-bedroom': {'source': 'tfds:lsun/bedroom', 'size': 256, 'network': {'name': 'models.iddpm_lsun256'},
                     'batch': 128, 'lr': 1e-4, 'steps': 1_200_000, 'resize': True, 'eval_split': 'validation'},
}


def get_config(arg=''):
    """Arguments: dataset; loss 'hybrid' | 'vlb' | 'simple'; schedule 'squaredcos_cap_v2' (cosine) | 'linear'; debug."""
    arg = parse_arg(arg, dataset=tuple(DATASETS), loss=('hybrid', 'vlb', 'simple'),
                    schedule=('squaredcos_cap_v2', 'linear'), debug=False)
    d = DATASETS[arg.dataset]
    c = base_config()
    c.data.source = d['source']
    c.data.eval_split = d.get('eval_split', 'test')
    c.data.batch_size = d['batch']
    fit = ({'name': 'resize', 'size': d['size']}, {'name': 'centre_crop', 'size': d['size']}) if 'resize' in d else ()
    c.data.transforms = (*fit, {'name': 'random_flip'})
    c.data.eval_transforms = fit or ({'name': 'centre_crop', 'size': d['size']},)
    eps = {'name': 'diffusion.parameterisation.eps'}
    c.system = {
        'name': 'systems.diffusion',
        'process': {'name': 'diffusion.discrete_ddpm', 'schedule': arg.schedule, 'steps': 4000},
        'times': {'name': 'diffusion.times.loss_aware' if arg.loss == 'vlb' else 'diffusion.times.discrete_uniform'},
        'parameterisation': {'name': 'diffusion.parameterisation.learned_range', 'base': eps},
        'weighting': {'name': 'diffusion.weighting.simple'},
        'loss': {'name': f'diffusion.losses.{arg.loss}'},
        'network': d['network'],
        'image_shape': (d['size'], d['size'], 3),
        'solver': 'ddpm',
        'spacing': 'linspace',
        'settings': {'variance': 'learned'},
        'steps': 250,
        'max_steps': 4000,
    }
    if arg.loss == 'simple':  # no variance is learned
        c.system.parameterisation = eps
        c.system.network.learn_sigma = False
        c.system.loss.name = 'diffusion.losses.denoising'
        c.system.settings = {'variance': 'fixed_large'}
    if 'classes' in d:
        c.system.cond = {'class_labels': 'label'}
    c.optim.lr = d['lr']
    c.train.steps = d['steps']
    c.train.ema = {'slow': {'decay': 0.9999, 'warmup': False}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 10_000
    c.sample.n = 64
    c.sample.columns = 8
    c.sample.every_steps = 20_000
    c.evaluate = {'bound': {'predict': 'vlb', 'metrics': ({'name': 'mean', 'key': 'bits_per_dim'},), 'every_steps': 0}}
    if arg.debug:
        shrink(c)
        c.system.network = {'name': 'models.adm_tiny', 'num_classes': 10 if 'classes' in d else None,
                            'learn_sigma': arg.loss != 'simple'}
        c.system.process.steps = c.system.max_steps = 10
        c.system.steps = 5
    return c
