"""ADM (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis").

    gen-jax train --config adm:imagenet256 --workdir runs/adm           # after `tfds build imagenet2012`
    gen-jax train --config adm:imagenet64 --workdir runs/adm64
    gen-jax sample --workdir runs/adm --steps 250 --labels 207

Published FID, 250 steps: ImageNet 64 2.07 (class-conditional), 128 5.91, 256 10.94, 512 23.24; LSUN bedroom 1.90. With
classifier guidance: 2.97 (128), 4.59 (256), 7.72 (512). Not trained to the end by us. The classifiers and up-samplers
are models.adm_classifier_* and models.adm_upsampler_*.
"""

from gen_jax.config import base_config, parse_arg, shrink

IMAGENET = {'source': 'tfds:imagenet2012', 'classes': 1000, 'eval_split': 'validation', 'schedule': 'linear',
            'batch': 256, 'lr': 1e-4}
VARIANTS = {
    'imagenet64': {**IMAGENET, 'size': 64, 'network': 'models.adm_imagenet64', 'schedule': 'squaredcos_cap_v2',
                   'batch': 2048, 'lr': 3e-4, 'steps': 540_000},
    'imagenet128': {**IMAGENET, 'size': 128, 'network': 'models.adm_imagenet128', 'steps': 4_360_000},
    'imagenet256': {**IMAGENET, 'size': 256, 'network': 'models.adm_imagenet256', 'steps': 1_980_000},
    'imagenet512': {**IMAGENET, 'size': 512, 'network': 'models.adm_imagenet512', 'steps': 1_940_000},
    'lsun-bedroom': {'source': 'tfds:lsun/bedroom', 'size': 256, 'network': 'models.adm_lsun256', 'steps': 750_000,
                     'eval_split': 'validation', 'schedule': 'linear', 'batch': 256, 'lr': 1e-4},
}


def get_config(arg=''):
    """Arguments: variant 'imagenet64' | 'imagenet128' | 'imagenet256' | 'imagenet512' | 'lsun-bedroom'; debug."""
    arg = parse_arg(arg, variant=tuple(VARIANTS), debug=False)
    d = VARIANTS[arg.variant]
    c = base_config()
    c.data.source = d['source']
    c.data.eval_split = d['eval_split']
    c.data.batch_size = d['batch']
    fit = ({'name': 'resize', 'size': d['size']}, {'name': 'centre_crop', 'size': d['size']})
    c.data.transforms = (*fit, {'name': 'random_flip'})
    c.data.eval_transforms = fit
    c.system = {
        'name': 'systems.diffusion',
        'process': {'name': 'diffusion.discrete_ddpm', 'schedule': d['schedule'], 'steps': 1000},
        'times': {'name': 'diffusion.times.discrete_uniform'},
        'parameterisation': {'name': 'diffusion.parameterisation.learned_range',
                             'base': {'name': 'diffusion.parameterisation.eps'}},
        'loss': {'name': 'diffusion.losses.hybrid'},
        'network': {'name': d['network']},
        'image_shape': (d['size'], d['size'], 3),
        'solver': 'ddpm',
        'spacing': 'linspace',
        'settings': {'variance': 'learned'},
        'steps': 250,
    }
    if 'classes' in d:
        c.system.cond = {'class_labels': 'label'}
    c.optim.name = 'adamw'
    c.optim.lr = d['lr']
    c.train.steps = d['steps']
    c.train.precision = 'bfloat16'
    c.train.ema = {'slow': {'decay': 0.9999, 'warmup': False}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 10_000
    c.sample.n = 16
    c.sample.columns = 4
    c.sample.batch_size = 16
    c.sample.every_steps = 50_000
    c.evaluate = {'heldout': {'predict': 'losses', 'metrics': ({'name': 'binned', 'key': 'loss', 'by': 't',
                                                                 'edges': tuple(range(0, 1001, 100))},),
                              'n': 1024, 'every_steps': 50_000}}
    if arg.debug:
        shrink(c)
        c.system.network = {'name': 'models.adm_tiny'}
        c.system.cond = {'class_labels': 'label'}
        c.system.process.steps = 10
        c.system.steps = 5
        c.evaluate.heldout.metrics = ({'name': 'mean', 'key': 'loss'},)
    return c
