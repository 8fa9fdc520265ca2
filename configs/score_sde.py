"""Score-based models through SDEs (Song et al. 2021), on CIFAR-10: VP, sub-VP and VE in continuous time.

    gen-jax train --config score_sde:vp --workdir runs/vp               # DDPM++, after `tfds build cifar10`
    gen-jax train --config score_sde:ve,deep --workdir runs/ve          # NCSN++, deep
    gen-jax sample --workdir runs/ve                                    # predictor-corrector: VE's published sampler
    gen-jax sample --workdir runs/vp --predict likelihood ...           # see docs/samplers.md

Published, continuous (FID): VE NCSN++ 2.38, deep 2.20; VP DDPM++ 2.55, deep 2.41; sub-VP DDPM++ 2.61, deep 2.41.
Bits/dim by the ODE: VP DDPM++ 3.16 and sub-VP 3.02, deep 2.99. Not trained to the end by us.
"""

from gen_jax.config import base_config, parse_arg, shrink


def get_config(arg=''):
    """Arguments: sde 'vp' | 'subvp' | 've'; network 'ddpmpp' | 'ncsnpp' | 'ddpm' ('auto': the paper's); deep; debug."""
    arg = parse_arg(arg, sde=('vp', 'subvp', 've'), network=('auto', 'ddpmpp', 'ncsnpp', 'ddpm'), deep=False,
                    debug=False)
    ve = arg.sde == 've'
    network = {'auto': 'ncsnpp' if ve else 'ddpmpp'}.get(arg.network, arg.network)
    c = base_config()
    c.seed = 42
    c.data.source = 'tfds:cifar10'
    c.data.batch_size = 128
    c.data.transforms = ({'name': 'random_flip'},)
    c.data.eval_transforms = ({'name': 'keep', 'keys': ('image',)},)
    c.system = {
        'name': 'systems.diffusion',
        'process': {'vp': {'name': 'diffusion.vp', 'beta_min': 0.1, 'beta_max': 20.0},
                    'subvp': {'name': 'diffusion.sub_vp', 'beta_min': 0.1, 'beta_max': 20.0},
                    've': {'name': 'diffusion.ve', 'sigma_min': 0.01, 'sigma_max': 50.0}}[arg.sde],
        'times': {'name': 'diffusion.times.uniform'},
        # VE networks divide by sigma and so return the score; VP networks return eps and are told 999 t.
        'parameterisation': {'name': 'diffusion.parameterisation.score', 'label': 'sigma'} if ve else
                            {'name': 'diffusion.parameterisation.eps', 'label_scale': 999.0},
        'weighting': {'name': 'diffusion.weighting.sigma_power'} if ve else {'name': 'diffusion.weighting.simple'},
        'network': {'name': f'models.{"ddpm_score_sde" if network == "ddpm" else network}_cifar10'},
        'image_shape': (32, 32, 3),
        'image_range': (0.0, 1.0) if ve else (-1.0, 1.0),
        'clip': None,
        'solver': 'reverse_diffusion' if ve else 'euler_maruyama',
        'spacing': 'uniform_t',
        'settings': {'corrector': 'langevin', 'snr': 0.16} if ve else {},
        'steps': 1000,
        'max_steps': 2000,
        'dequantise': False,
    }
    if network != 'ddpm' and arg.deep:
        c.system.network.deep = True
    if network in ('ncsnpp', 'ddpm') and not ve:
        c.system.network.sde = 'vp'
    if network == 'ddpm' and ve:
        c.system.network.sde = 've'
    if network == 'ddpmpp' and ve:
        c.system.parameterisation = {'name': 'diffusion.parameterisation.eps', 'label': 'sigma'}
        c.system.weighting = {'name': 'diffusion.weighting.simple'}
    c.optim.lr = 2e-4
    c.optim.warmup_steps = 5000
    c.optim.clip_norm = 1.0
    c.train.steps = 950_001 if not ve or arg.deep else 1_300_001
    c.train.ema = {'slow': {'decay': 0.999 if ve else 0.9999, 'warmup': True}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 10_000
    c.sample.n = 64
    c.sample.columns = 8
    c.sample.every_steps = 50_000
    c.evaluate = {
        'heldout': {'predict': 'losses', 'metrics': ({'name': 'binned', 'key': 'loss', 'by': 't',
                                                       'edges': tuple(i / 10 for i in range(11))},),
                    'every_steps': 50_000},
        'likelihood': {'predict': 'likelihood', 'metrics': ({'name': 'mean', 'key': 'bits_per_dim'},),
                       'every_steps': 0},
    }
    if arg.debug:
        shrink(c)
        tiny = {'label_dim': 0, 'model_channels': 8, 'num_groups': 4, 'attn_resolutions': (), 'channel_mult': (1,)}
        c.system.network = {'name': f'models.{"ncsnpp" if ve else "ddpmpp"}_digits', **tiny}
        if network == 'ddpmpp' and ve:
            c.system.network.name = 'models.ddpmpp_digits'
        if ve:
            c.system.network.center_input_sample = True
        c.system.steps = 5
        c.evaluate.heldout.metrics = ({'name': 'mean', 'key': 'loss'},)
    return c
