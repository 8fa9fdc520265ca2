"""Published networks have their published number of parameters, to the last digit: one row each."""

import jax
import jax.numpy as jnp
import pytest

from gen_jax import models, trees

CLASS = {'class_labels': ()}
SIZES = {
    # variant: (factory, overrides, image shape, conditions (shapes behind the batch axis), parameters)
    'ADM/64-cond': ('adm_imagenet64', {}, (64, 64, 3), CLASS, 295_904_454),
    'ADM/128-cond': ('adm_imagenet128', {}, (128, 128, 3), CLASS, 421_529_606),
    'ADM/256-cond': ('adm_imagenet256', {}, (256, 256, 3), CLASS, 553_838_086),
    'ADM/256-uncond': ('adm_imagenet256', {'num_classes': None}, (256, 256, 3), {}, 552_814_086),
    'ADM/512-cond': ('adm_imagenet512', {}, (512, 512, 3), CLASS, 558_997_638),
    'ADM/LSUN-256-bedroom': ('adm_lsun256', {}, (256, 256, 3), {}, 552_814_086),
    'ADM/upsampler-64-256': (
        'adm_upsampler_64_256', {}, (256, 256, 3), {**CLASS, 'low_res': (64, 64, 3)}, 311_795_910),
    'ADM/upsampler-128-512': (
        'adm_upsampler_128_512', {}, (512, 512, 3), {**CLASS, 'low_res': (128, 128, 3)}, 308_835_270),
    'ADM/classifier-64': ('adm_classifier_imagenet64', {}, (64, 64, 3), {}, 65_438_568),
    'ADM/classifier-128': ('adm_classifier_imagenet128', {}, (128, 128, 3), {}, 42_568_040),
    'ADM/classifier-256': ('adm_classifier_imagenet256', {}, (256, 256, 3), {}, 54_096_360),
    'ADM/classifier-512': ('adm_classifier_imagenet512', {}, (512, 512, 3), {}, 54_448_360),
    'iDDPM/cifar10-uncond 50M': ('iddpm_cifar10', {}, (32, 32, 3), {}, 52_546_438),
    'iDDPM/imagenet64-uncond 100M': ('iddpm_imagenet64', {}, (64, 64, 3), {}, 121_063_942),
    'iDDPM/imagenet64-cond 270M': (
        'iddpm_imagenet64', {'model_channels': 192, 'num_classes': 1000}, (64, 64, 3), CLASS, 273_049_350),
    'iDDPM/lsun-bedroom-256': ('iddpm_lsun256', {}, (256, 256, 3), {}, 113_676_678),
    'iDDPM/upsampler-64-256': (
        'iddpm_upsampler_64_256', {}, (256, 256, 3), {**CLASS, 'low_res': (64, 64, 3)}, 279_792_390),
}


@pytest.mark.parametrize('variant', SIZES)
def test_size(variant):
    factory, overrides, image_shape, conditions, expected = SIZES[variant]
    network = getattr(models, factory)(**overrides)
    cond = {k: jnp.zeros((1, *s), int if k == 'class_labels' else jnp.float32) for k, s in conditions.items()}
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), jnp.ones(1), **cond))
    assert trees.count(shapes) == expected
