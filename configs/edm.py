"""EDM (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models"), config F.

    gen-jax train --config edm --workdir runs/edm                       # CIFAR-10, DDPM++, after `tfds build cifar10`
    gen-jax train --config edm:network=ncsnpp,cond --workdir runs/edm_c
    gen-jax train --config edm:dataset=imagenet64 --workdir runs/edm64  # the ADM network
    gen-jax sample --workdir runs/edm --steps 18                        # Heun, 35 network calls
    gen-jax sample --workdir runs/edm64 --steps 256 --set corrector=churn --set s_churn=40 --set s_tmin=0.05 \\
        --set s_tmax=50 --set s_noise=1.003

Published FID: CIFAR-10 1.97 (unconditional, VP), 1.98 (VE), 1.79 (class-conditional); ImageNet 64 2.23 in 79 calls,
1.36 with the stochastic sampler. Not trained to the end by us. The non-leaking augmentation pipeline is not part of
this config: the networks are told that nothing was augmented.
"""

from gen_jax.config import base_config, parse_arg, shrink

DATASETS = {
    'cifar10': {'source': 'tfds:cifar10', 'size': 32, 'batch': 512, 'lr': 1e-3, 'mimg': 200, 'ema_mimg': 0.5,
                'classes': 10},
    'ffhq64': {'source': 'folder:data/ffhq64', 'size': 64, 'batch': 256, 'lr': 2e-4, 'mimg': 200, 'ema_mimg': 0.5,
               'network': {'img_resolution': 64, 'channel_mult': (1, 2, 2, 2), 'dropout': 0.05}},
    'imagenet64': {'source': 'tfds:imagenet_resized/64x64', 'size': 64, 'batch': 4096, 'lr': 1e-4, 'mimg': 2500,
                   'ema_mimg': 50, 'classes': 1000, 'eval_split': 'validation'},
}


def get_config(arg=''):
    """Arguments: dataset 'cifar10' | 'ffhq64' | 'imagenet64'; network 'ddpmpp' (VP) | 'ncsnpp' (VE); cond; debug."""
    arg = parse_arg(arg, dataset=tuple(DATASETS), network=('ddpmpp', 'ncsnpp'), cond=False, debug=False)
    d = DATASETS[arg.dataset]
    adm = arg.dataset == 'imagenet64'
    c = base_config()
    c.data.source = d['source']
    c.data.eval_split = d.get('eval_split', 'test')
    c.data.batch_size = d['batch']
    c.system = {
        'name': 'systems.diffusion',
        'process': {'name': 'diffusion.edm', 'sigma_min': 0.002, 'sigma_max': 80.0},
        'times': {'name': 'diffusion.times.log_normal', 'mean': -1.2, 'std': 1.2},
        'parameterisation': {'name': 'diffusion.parameterisation.edm', 'sigma_data': 0.5},
        'weighting': {'name': 'diffusion.weighting.edm', 'sigma_data': 0.5},  # 1 on the network's own target
        'network': {'name': 'models.edm_adm_imagenet64' if adm else f'models.edm_{arg.network}',
                    **d.get('network', {})},
        'image_shape': (d['size'], d['size'], 3),
        'clip': None,
        'solver': 'heun',
        'spacing': 'karras',
        'settings': {'rho': 7.0},
        'steps': 18 if arg.dataset == 'cifar10' else 40,
        'max_steps': 256,
    }
    if adm or arg.cond:
        if 'classes' not in d:
            raise ValueError(f'{arg.dataset} has no classes: leave `cond` out')
        c.system.cond = {'class_labels': 'label'}
        c.system.network.label_dim = d['classes']
    c.optim.lr = d['lr']
    c.optim.warmup_steps = round(10e6 / d['batch'])
    c.train.steps = round(d['mimg'] * 1e6 / d['batch'])
    c.train.precision = 'bfloat16' if adm else 'float32'
    # A half-life in images, as the paper states it.
    c.train.ema = {'slow': {'decay': 0.5 ** (d['batch'] / (d['ema_mimg'] * 1e6)), 'warmup': True}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 5000
    c.sample.n = 64
    c.sample.columns = 8
    c.sample.every_steps = 10_000
    c.evaluate = {'heldout': {'predict': 'losses', 'metrics': ({'name': 'mean', 'key': 'loss'},),
                              'every_steps': 10_000}}
    if arg.debug:
        shrink(c)
        c.system.network = {'name': 'models.edm_adm_digits' if adm else 'models.songunet_digits', 'label_dim': 0,
                            'model_channels': 8, 'num_groups': 4, 'attn_resolutions': (), 'channel_mult': (1,)}
        if adm:
            c.system.network.channels_per_head = 8
        if adm or arg.cond:
            c.system.network.label_dim = 10
        c.system.steps = 3
    return c
