"""The first stage of latent diffusion (Rombach et al. 2022) on the procedural `shapes` scenes: 32x32 to 8x8x4 latents.

    gen-jax train --config shapes_vae --workdir runs/shapes_vae
    gen-jax evaluate --workdir runs/shapes_vae
    gen-jax cache --workdir runs/shapes_vae --split train --out caches/shapes

An autoencoder of 0.95 million parameters and squared errors. The KL term hardly matters for the pictures, but much for
who is to draw the latents: at a weight of 1e-6 (31.9 dB) they had to be exact to 0.3 % of their spread. `test` is 2,000
scenes of seen shape-colour pairs, `heldout` 2,000 of unseen ones: `psnr` in dB (the scenes' own noise caps it near 34),
and `scene`, the share of reconstructions in which the oracle reads count, shapes, colours and sizes right.

Expected, on 2 idle CPU cores in about 24 minutes: at least 30 dB and 0.95. Ours, one seed: 31.7 dB and 0.976 (unseen
pairs 31.1 dB and 0.958); with a weight of 1e-6, 31.9 dB and 0.978 (31.4 dB and 0.965).
"""

from gen_jax.config import base_config, parse_arg


def get_config(arg=''):
    """Arguments: adversarial (with a patch discriminator, from half of the steps on); debug."""
    arg = parse_arg(arg, adversarial=False, debug=False)
    c = base_config()
    c.data.source = 'shapes'
    c.data.batch_size = 32
    c.data.options = {'fields': ('image',), 'size': 50_000, 'max_objects': 3}
    c.system = {
        'name': 'systems.autoencoder_kl',
        'network': {'name': 'models.autoencoder_kl_shapes'},
        'reconstruction': 'l2',
        'kl_weight': 5e-3,
        'contrast_weight': 0.0,
    }
    c.optim.lr = 1e-3
    c.optim.schedule = 'cosine'
    c.optim.warmup_steps = 100
    c.optim.b2 = 0.99
    c.optim.clip_norm = 1.0
    c.train.steps = 3000
    c.train.ema = {'slow': {'decay': 0.995, 'warmup': True}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 500
    c.sample.predict = ''  # a draw from the prior is no picture: the KL term is far too small for that
    truth = {'data_options': {'fields': ('image', 'shapes', 'colours', 'sizes')}, 'batch_size': 200,
             'predict': 'reconstruct', 'metrics': ({'name': 'psnr', 'prediction': 'image', 'target': 'reference'},
                                                   'scenes')}
    c.evaluate = {
        'val': {**truth, 'split': 'val', 'n': 400, 'every_steps': 1000},
        'test': {**truth, 'split': 'test', 'n': 2000},  # at the end only
        'heldout': {**truth, 'split': 'heldout', 'n': 2000},
    }
    if arg.adversarial:
        c.system.discriminator = {'name': 'models.patch_discriminator_shapes'}
        c.system.adversarial_weight = 0.1
        c.system.adversarial_start = c.train.steps // 2
        c.optim.per = {'discriminator': {'lr': 2e-4}}
    if arg.debug:
        c.system.network = {'name': 'models.autoencoder_kl_tiny', 'block_out_channels': (4,),
                            'down_block_types': ('DownEncoderBlock2D',), 'up_block_types': ('UpDecoderBlock2D',),
                            'mid_block_add_attention': False}
        if arg.adversarial:
            c.system.discriminator.update({'width': 4, 'layers': 1})
            c.system.adversarial_start = 1
        c.data.batch_size = 16
        c.data.options.size = 64
        c.train.steps = 4
        c.optim.warmup_steps = 1
        for spec in c.evaluate.values():
            spec.update({'n': 20, 'batch_size': 10})
        c.evaluate.val.every_steps = 2
    return c
