"""DCGAN on scikit-learn's handwritten digits, interpolated to 16x16 (Radford et al. 2015).

    gen-jax train --config digits_gan --workdir runs/gan
    gen-jax evaluate --workdir runs/gan

About a minute on 2 CPU cores. Non-saturating loss with one-sided label smoothing; the discriminator moves
first, then the generator. A support vector machine trained on real digits reads 1,000 samples:

* `generate/class_fraction_min`, the rarest class: 6.4 % and 5.5 % with seeds 0 and 1 (expect above 3 %);
* `generate/frechet`, the distance to held-out digits: 1.96 and 1.81 (real training digits 0.99, five per class repeated
  3.45, one per class 8.13, class means 13.46);
* `generate/nearest_train`, the median distance to the nearest training digit: 22, and 16.3 for held-out digits, so
  nothing is copied.
"""

from gen_jax.config import base_config, parse_arg


def get_config(arg=''):
    """Arguments: loss 'non_saturating' | 'hinge' | 'wasserstein'; upsample 'subpixel' | 'transpose'; debug."""
    arg = parse_arg(arg, loss='non_saturating', upsample='subpixel', debug=False)
    c = base_config()
    c.data.source = 'digits'
    c.data.options = {'image_size': 16}
    c.data.batch_size = 64
    c.system = {
        'name': 'systems.gan',
        'generator': {'name': 'models.dcgan_generator_digits', 'width': 64, 'latent_dim': 32, 'upsample': arg.upsample},
        'discriminator': {'name': 'models.dcgan_discriminator_digits', 'width': 64},
        'loss': arg.loss,
        'label_smoothing': 0.1 if arg.loss == 'non_saturating' else 0.0,
        'r1': 0.0,
    }
    c.optim.lr = 1e-3
    c.optim.b1 = 0.5
    c.optim.per = {'generator': {}, 'discriminator': {}}
    c.train.steps = 1000
    c.train.ema = {'slow': {'decay': 0.99, 'warmup': True}}
    c.log.every_steps = 50
    c.checkpoint.every_steps = 250
    c.sample.every_steps = 250
    c.evaluate = {
        # No class was asked for, so none may be scored: the report reads labels under a name that does not exist.
        'generate': {'predict': 'generate', 'on': 'labels', 'n': 1000, 'batch_size': 500, 'every_steps': 250,
                     'metrics': ({'name': 'digits_report', 'label': 'none'},)},
    }
    if arg.debug:
        c.system.generator.width = c.system.discriminator.width = 4
        c.data.batch_size = 16
        c.train.steps = 4
        c.sample.n = 10
        c.evaluate.generate.update({'n': 20, 'every_steps': 2})
    return c
