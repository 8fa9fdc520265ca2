"""DDPM on CIFAR-10 (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", Appendix B), unconditional.

    gen-jax train --config ddpm --workdir runs/ddpm                     # after `tfds build cifar10` as array_record
    gen-jax train --config ddpm:dataset=celebahq256 --workdir runs/hq
    gen-jax sample --workdir runs/ddpm --n 16

Published: FID 3.17 and Inception Score 9.46 on CIFAR-10 after 800,000 steps, with 1,000 sampling steps (35.7 M
parameters; 113.7 M at 256x256). Not trained to the end by us. The published code adds the large variance, beta_t.
"""

from gen_jax.config import base_config, parse_arg, shrink

DATASETS = {
    'cifar10': {'source': 'tfds:cifar10', 'size': 32, 'network': 'models.ddpm_cifar10', 'batch': 128, 'lr': 2e-4,
                'dropout': 0.1, 'steps': 800_000},
    'celebahq256': {'source': 'tfds:celeb_a_hq/256', 'size': 256, 'network': 'models.ddpm_celebahq_256', 'batch': 64,
                    'lr': 2e-5, 'dropout': 0.0, 'steps': 500_000},
}


def get_config(arg=''):
    """Arguments: dataset 'cifar10' | 'celebahq256'; debug (a few steps of a tiny network on embedded digits)."""
    arg = parse_arg(arg, dataset=tuple(DATASETS), debug=False)
    d = DATASETS[arg.dataset]
    c = base_config()
    c.data.source = d['source']
    c.data.batch_size = d['batch']
    c.data.transforms = ({'name': 'random_flip'},)
    c.data.eval_transforms = ({'name': 'keep', 'keys': ('image',)},)
    if arg.dataset == 'celebahq256':
        c.data.eval_split = 'train'  # it has no other
    c.system = {
        'name': 'systems.diffusion',
        'times': {'name': 'diffusion.times.discrete_uniform'},
        'process': {'name': 'diffusion.discrete_ddpm', 'schedule': 'linear', 'beta_start': 1e-4, 'beta_end': 0.02},
        'parameterisation': {'name': 'diffusion.parameterisation.eps'},
        'weighting': {'name': 'diffusion.weighting.simple'},
        'network': {'name': d['network'], 'dropout': d['dropout']},
        'image_shape': (d['size'], d['size'], 3),
        'solver': 'ddpm',
        'settings': {'variance': 'fixed_large'},
        'steps': 1000,
    }
    c.optim.lr = d['lr']
    c.optim.warmup_steps = 5000
    c.optim.clip_norm = 1.0
    c.train.steps = d['steps']
    c.train.ema = {'slow': {'decay': 0.9999, 'warmup': False}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 5000
    c.sample.n = 64
    c.sample.columns = 8
    c.sample.every_steps = 20_000
    c.evaluate = {
        'heldout': {'predict': 'losses', 'metrics': ({'name': 'binned', 'key': 'loss', 'by': 't',
                                                       'edges': tuple(range(0, 1001, 100))},), 'every_steps': 20_000},
        'bound': {'predict': 'vlb', 'metrics': ({'name': 'mean', 'key': 'bits_per_dim'},), 'every_steps': 0},
    }
    if arg.debug:
        shrink(c)
        c.system.network = {'name': 'models.unet_tiny', 'num_class_embeds': None}
        c.system.process.steps = c.system.steps = 10
        c.evaluate.heldout.metrics = ({'name': 'mean', 'key': 'loss'},)
    return c
