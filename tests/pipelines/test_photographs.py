"""Photographs through image-to-image and inpainting: kept as they are by networks that do nothing, and at 512x512."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from gen_jax.models import AutoencoderKL, UNet2DCondition, sd_vae
from gen_jax.models.tiling import tiled_decode, tiled_encode
from gen_jax.pipelines import load_pipeline, make_pipeline, schedule
from gen_jax.pipelines.pictures import pictures, to_uint8
from tests.golden import make_pipelines as made
from tests.pipelines.folders import drawn, write


@pytest.fixture(scope='module')
def photographs():
    """uint8 [427, 640, 3] each."""
    found = load_sample_images()
    return {Path(name).stem: image for name, image in zip(found.filenames, found.images, strict=True)}


@pytest.fixture(scope='module')
def squares(photographs):
    """uint8 [2, 512, 512, 3]: their centres, enlarged."""
    centres = [Image.fromarray(image).crop((106, 0, 533, 427)) for image in photographs.values()]
    return np.stack([np.asarray(c.resize((512, 512), Image.Resampling.LANCZOS)) for c in centres])


@pytest.fixture(scope='module')
def small(once):
    """A tiny pipeline, whose networks are exchanged below."""
    return load_pipeline(once('pipeline-sd1', lambda folder: write('sd1', folder)))


def rebuilt(small, **modules):
    """The pipeline with other modules, random where they have parameters."""
    variables = {**small.variables, **{part: drawn(part, module) if isinstance(module, (AutoencoderKL, UNet2DCondition))
                                       else {'none': jnp.zeros(1)} for part, module in modules.items()}}
    return make_pipeline(small.networks._replace(**modules), variables, small.scheduler, small.index)


class Pixels(nn.Module):
    """An autoencoder whose latents are the pixels."""

    downsampling_factor, latent_channels, scaling_factor, shift_factor = 1, 3, 0.5, None

    def encode(self, image):
        return image, jnp.full(image.shape, -30.0)

    def decode(self, z):
        return z


class Silent(nn.Module):
    """A UNet that finds no noise."""

    in_channels, sample_size = 3, None

    def __call__(self, x, t, text):
        return jnp.zeros(x.shape)


def test_what_is_read_is_what_is_drawn(photographs, tmp_path):
    """Arrays, PIL images and files: rows stay rows, and red stays red."""
    china, flower = photographs.values()
    Image.fromarray(china).save(tmp_path / 'china.png')
    for given in ([china, flower], [Image.fromarray(china), Image.fromarray(flower)],
                  [str(tmp_path / 'china.png'), flower]):
        read = pictures(given, 2, 1)
        assert read.shape == (2, 427, 640, 3) and read.dtype == np.float32
        np.testing.assert_allclose(read, np.stack([china, flower]) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(read)), np.stack([china, flower]))


def test_networks_that_do_nothing_give_the_photograph_back(small, photographs):
    """No starting noise, none found, latents that are pixels: what then changes a pixel is a bug in between."""
    pipeline, given = rebuilt(small, unet=Silent(), vae=Pixels()), dict(
        scheduler='DDIMScheduler', steps=3, max_steps=3, guidance_scale=None, latents=np.zeros((1, 427, 640, 3)),
        sample_posterior=False)
    china, flower = photographs.values()
    for image, strength in ((china, 0.34), (flower, 1.0)):
        kept = pipeline.image_to_image(pipeline.variables, 'x', image, strength=strength, **given)
        np.testing.assert_array_equal(kept[0], image)
    mask = np.zeros((427, 640), np.uint8)
    mask[20:150, 300:] = 255
    painted = np.asarray(pipeline.inpaint(pipeline.variables, 'x', flower, mask, **given)[0])
    np.testing.assert_array_equal(painted[mask == 0], flower[mask == 0])
    assert set(painted[mask > 0].ravel()) <= {127, 128}  # drawn from no noise: grey


class Spread(Pixels):
    """An autoencoder with a wide posterior and a shift."""

    shift_factor = 0.3

    def encode(self, image):
        return image, jnp.full(image.shape, 2 * np.log(0.1))


def test_the_posterior_is_drawn_from(small):
    """Its mean, shifted and scaled, and its spread; another draw for each seed. The noise of the start is nothing."""
    pipeline, image = rebuilt(small, unet=Silent(), vae=Spread()), np.full((64, 64, 3), 0.7, np.float32)
    given = dict(steps=1, max_steps=1, guidance_scale=None, solver='ddim', strength=1.0, output='latents',
                 latents=np.zeros((2, 64, 64, 3)), images_per_prompt=2)
    one, two = np.asarray(pipeline.image_to_image(pipeline.variables, 'x', image, **given))
    n = one.size
    np.testing.assert_allclose([one.mean(), two.mean()], 0.5 * (0.4 - 0.3), atol=5 * 0.05 / n**0.5)
    np.testing.assert_allclose([one.std(), two.std()], 0.5 * 0.1, rtol=5 / (2 * n)**0.5)
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / n**0.5
    mean = pipeline.image_to_image(pipeline.variables, 'x', image, **given, sample_posterior=False)
    np.testing.assert_allclose(mean, 0.05, atol=1e-5)
    shown = pipeline.image_to_image(pipeline.variables, 'x', image, **{**given, 'output': 'image'},
                                    sample_posterior=False)
    np.testing.assert_allclose(shown, np.round(0.7 * 255), atol=1)


SEEN = []


class Watched(nn.Module):
    """A UNet that tells what it is shown, and turns all of it around."""

    in_channels, sample_size = 3, None

    def __call__(self, x, t, text):
        jax.debug.callback(lambda x, t: SEEN.append((np.asarray(x), np.asarray(t))), x, t)
        return x[:, ::-1, ::-1]


def test_the_network_sees_what_is_known_at_every_call(small, photographs):
    """Outside of the mask, its input is the picture with the noise of the start, at the level of the call; between
    the calls of one step, too."""
    pipeline = rebuilt(small, unet=Watched(), vae=Pixels())
    z = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    image = photographs['china'][:8, :8]
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 5:] = 255
    SEEN.clear()
    pipeline.inpaint(pipeline.variables, 'x', image, mask, solver='heun', steps=4, guidance_scale=None, latents=z,
                     sample_posterior=False, output='latents').block_until_ready()
    jax.effects_barrier()
    solver, rows = schedule.levels(schedule.solver_of(pipeline.scheduler, solver='heun'), 4)
    times, alphas, sigmas = (np.asarray(leaf)[:5] for leaf in rows.grid[:3])
    known = 0.5 * (image / 127.5 - 1)[:, :5]
    seen = [(x, np.abs(times - t.ravel()[0]).argmin()) for x, t in SEEN]
    assert sorted(k for _, k in seen) == [0, 1, 1, 2, 2, 3, 3]
    for x, k in seen:
        expected = alphas[k] * known + sigmas[k] * z[0, :, :5] if k else rows.start * z[0, :, :5]
        np.testing.assert_allclose(x[0, :, :5], expected, atol=1e-4)


@pytest.fixture(scope='module')
def f8(small):
    """An autoencoder of factor 8, with tiles of 256 pixels, and a UNet for its latents of 64x64."""
    vae = AutoencoderKL(block_out_channels=(8,) * 4, down_block_types=('DownEncoderBlock2D',) * 4,
                        up_block_types=('UpDecoderBlock2D',) * 4, norm_num_groups=4, sample_size=256)
    unet = UNet2DCondition(
        block_out_channels=(8, 16, 16), down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=12, attention_head_dim=2, sample_size=64)
    return rebuilt(small, unet=unet, vae=vae)


WAYS = {'whole': {}, 'sliced': dict(slicing=True), 'tiled': dict(tiling=True)}
"""Of the autoencoder."""


def differ(a, b):
    """Mean difference in grey levels."""
    return np.abs(np.asarray(a, float) - np.asarray(b, float)).mean()


def draw(f8, squares, use, *masks, **settings):
    function, given = getattr(f8, use), dict(scheduler='DDIMScheduler', steps=2, max_steps=2, guidance_scale=3.0)
    drawn = np.asarray(function(f8.variables, made.PROMPTS[0], squares, *masks, images_per_prompt=2,
                                **{**given, 'seed': [5, 5], **settings}))
    assert drawn.dtype == np.uint8 and drawn.shape == (2, 512, 512, 3)
    return drawn


@pytest.mark.slow
def test_image_to_image_at_512(f8, squares):
    found = {}
    for way, options in WAYS.items():
        found[way] = draw(f8, squares, 'image_to_image', strength=0.5, **options)
        # Infinities and NaN would be one grey level.
        assert found[way].std((1, 2)).min() > 5 and differ(*found[way]) > 5
    assert differ(found['whole'], found['sliced']) < 0.01
    # Norms and attention see a tile instead of the picture, which random weights make much of.
    assert 0 < differ(found['whole'], found['tiled']) < 0.7 * differ(*found['whole'])


@pytest.mark.slow
@pytest.mark.parametrize('way', WAYS)
def test_inpainting_at_512(f8, squares, way):
    left, nothing = np.zeros((512, 512), np.uint8), np.zeros((512, 512), np.uint8)
    left[:, :200] = 255

    def inpaint(mask, **settings):
        return draw(f8, squares, 'inpaint', mask, **WAYS[way], sample_posterior=False, **settings)

    one = inpaint(left)
    assert one.std((1, 2)).min() > 5
    other, new = inpaint(left[:, ::-1]), inpaint(left, seed=[6, 6])
    assert differ(one, other) > 3
    # A new seed changes what is painted, not what is kept (norms over whole pictures change that a little).
    assert differ(one[:, :, :200], new[:, :, :200]) > 4 * differ(one[:, :, 232:], new[:, :, 232:])
    np.testing.assert_array_equal(inpaint(nothing), inpaint(nothing, seed=[6, 6]))
    all_of_it = inpaint(~nothing)
    np.testing.assert_allclose(all_of_it[0], all_of_it[1], atol=1)  # the photographs are not seen any more
    assert differ(*inpaint(nothing)) > 5


@pytest.mark.slow
def test_the_memory_of_the_published_autoencoder_at_512():
    """As gen_jax/models/tiling.py states it, in MiB, for Stable Diffusion's 83,653,863 parameters."""
    vae = sd_vae(sample_size=256)
    image, z = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 512, 512, 3), (1, 64, 64, 4)))
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863
    programs = {
        'encode': lambda v, x: vae.apply(v, x, method='encode'),
        'decode': lambda v, z: vae.apply(v, z, method='decode'),
        'encode in tiles': lambda v, x: tiled_encode(vae, v, x),
        'decode in tiles': lambda v, z: tiled_decode(vae, v, z),
    }
    stated = {'encode': 384, 'decode': 640, 'encode in tiles': 112, 'decode in tiles': 165}
    planned = {name: jax.jit(run).lower(shapes, z if 'decode' in name else image).compile().memory_analysis()
               .temp_size_in_bytes for name, run in programs.items()}
    for name, mib in stated.items():
        assert 0.9 * mib < planned[name] / 2**20 < 1.05 * mib, planned
