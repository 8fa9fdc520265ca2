"""Prints the pictures that diffusers 0.42.1's pipelines make with small random networks, into pipelines.npz.

Needs torch, diffusers and transformers (the `reference` extra): PYTHONPATH=. python tests/golden/make_pipelines.py

Weights, noise and pictures are not stored: they are drawn from seeds made of names, here and in the test. Encoded
pictures are the mean of their distribution, so that no noise is to be agreed upon but that of the start.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.golden.draws import draw, weight
from tests.golden.make_clip_bpe import byte_vocabulary

SIZE, FACTOR, BATCH = 16, 2, 2
PROMPTS, NEGATIVE = ['a red square', 'Two green stars, left of a moon!'], 'blurry'
SCHEDULERS = ('DDIMScheduler', 'PNDMScheduler', 'EulerDiscreteScheduler', 'DPMSolverMultistepScheduler')
STEPS, GUIDANCE = (1, 5, 20), (1.0, 7.5)
USES = ('text_to_image', 'image_to_image', 'inpaint')
STRENGTH = {1: 1.0, 5: 0.8, 20: 0.6}
"""Of image_to_image; 0.8 of 5 steps is where PNDM's list of times is cut between its equal ones."""
ODD = {('sd1', 'text_to_image'): (14, 18), ('sd1', 'inpaint'): (18, 14), ('sdxl', 'image_to_image'): (14, 22)}
"""Pictures of another height and width: the UNet does not divide the sides of their latents. DDIM, 5 steps, 7.5."""
SETTINGS = {'clip_skip': dict(clip_skip=1), 'guidance_rescale': dict(guidance_rescale=0.7),
            'no_negative': dict(negative_prompt=None)}
"""Of text_to_image, each for every case. DDIM, 5 steps, 7.5. Only SDXL's negative prompt of zeros differs from ''."""

BETAS = {'num_train_timesteps': 1000, 'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear',
         'trained_betas': None, 'clip_sample': False, 'set_alpha_to_one': False, 'steps_offset': 1,
         'skip_prk_steps': True}
UNET = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=SIZE // FACTOR,
            in_channels=4, out_channels=4, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))
VAE = dict(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=SIZE,
           down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2)
TEXT = dict(vocab_size=514, hidden_size=12, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=24, bos_token_id=512)
CASES = {
    'sd1': dict(
        pipeline='StableDiffusionPipeline', scheduler={**BETAS, '_class_name': 'PNDMScheduler'}, vae={},
        unet=dict(cross_attention_dim=12, attention_head_dim=2),
        text=[dict(hidden_act='quick_gelu', eos_token_id=2)]),
    'sd2': dict(
        pipeline='StableDiffusionPipeline',
        scheduler={**BETAS, '_class_name': 'DDIMScheduler', 'prediction_type': 'v_prediction'}, vae={},
        unet=dict(cross_attention_dim=12, attention_head_dim=(1, 2), use_linear_projection=True),
        text=[dict(hidden_act='gelu', eos_token_id=513)]),
    'sdxl': dict(
        pipeline='StableDiffusionXLPipeline',
        scheduler={**BETAS, '_class_name': 'EulerDiscreteScheduler', 'timestep_spacing': 'leading'},
        vae=dict(scaling_factor=0.13025),
        unet=dict(down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
                  up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), cross_attention_dim=12 + 16,
                  attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), use_linear_projection=True,
                  addition_embed_type='text_time', addition_time_embed_dim=8,
                  projection_class_embeddings_input_dim=10 + 6 * 8),
        text=[dict(hidden_act='quick_gelu', eos_token_id=2),
              dict(hidden_act='gelu', eos_token_id=513, hidden_size=16, projection_dim=10)]),
    'inpainting': dict(
        pipeline='StableDiffusionInpaintPipeline', scheduler={**BETAS, '_class_name': 'PNDMScheduler'}, vae={},
        unet=dict(cross_attention_dim=12, attention_head_dim=2, in_channels=9),
        text=[dict(hidden_act='quick_gelu', eos_token_id=2)]),
}


def vocabulary() -> tuple[dict, str]:
    """(vocab.json, merges.txt): bytes, and nothing to merge."""
    vocab = {token: i for i, token in enumerate(list(byte_vocabulary())[:512])}
    return {**vocab, '<|startoftext|>': 512, '<|endoftext|>': 513}, '#version: 0.2\n'


def parameter(part: str, key: str, shape) -> np.ndarray:
    """The value of a parameter, in torch's layout."""
    if part.startswith('text_encoder') and not key.startswith(('text_model.', 'text_projection.')):
        key = f'text_model.{key}'
    value = weight(f'{part} {key}', shape)
    return 3 * value if key in ('conv_out.weight', 'decoder.conv_out.weight') else value


def picture(size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """uint8 [H, W, 3]."""
    rows = draw('picture', (*size, 3)).cumsum(0).cumsum(1)
    return np.clip(128 + 12 * rows, 0, 255).astype(np.uint8)


def mask(size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """uint8 [H, W], 255 where is to be painted; its edge is not on the grid of the latents."""
    painted = np.zeros(size, np.uint8)
    painted[3:11, 5:] = 255
    return painted


def noise(size: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """[B, h, w, C] of the start."""
    return draw('x_T', (BATCH, size[0] // FACTOR, size[1] // FACTOR, 4))


def variants(case: str) -> dict[str, tuple[str, tuple[int, int], str, int, float, dict]]:
    """Name in the file -> (use, (height, width), scheduler, steps, guidance_scale, further settings) of a case."""
    uses = ('inpaint',) if case == 'inpainting' else USES
    found = {f'{case}/{use}/{scheduler}/{steps}/{scale}': (use, (SIZE, SIZE), scheduler, steps, scale, {})
             for use in uses for scheduler in SCHEDULERS for steps in STEPS for scale in GUIDANCE}
    found |= {f'{name}/{use}/odd': (use, size, 'DDIMScheduler', 5, 7.5, {})
              for (name, use), size in ODD.items() if name == case}
    return found if case == 'inpainting' else found | {
        f'{case}/text_to_image/{name}': ('text_to_image', (SIZE, SIZE), 'DDIMScheduler', 5, 7.5, more)
        for name, more in SETTINGS.items()}


def main() -> None:
    import diffusers
    import torch
    from diffusers.pipelines import stable_diffusion, stable_diffusion_xl
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(2)
    # What diffusers' clip_skip asks for, and transformers 5 has no more.
    CLIPTextModel.text_model = property(lambda self: self)
    start = {}
    xl, sd = stable_diffusion_xl, stable_diffusion
    for module in (sd.pipeline_stable_diffusion_img2img, sd.pipeline_stable_diffusion_inpaint,
                   xl.pipeline_stable_diffusion_xl_img2img, xl.pipeline_stable_diffusion_xl_inpaint):
        module.randn_tensor = lambda *_, **__: start['x_T'].clone()
        module.retrieve_latents = lambda output, *_, **__: output.latent_dist.mode()

    def fill(model, part):
        with torch.no_grad():
            for key, value in model.named_parameters():
                value.copy_(torch.from_numpy(parameter(part, key, value.shape)))
        return model.eval()

    found = {}
    for case, spec in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            vocab, merges = vocabulary()
            (folder / 'vocab.json').write_text(json.dumps(vocab))
            (folder / 'merges.txt').write_text(merges)
            parts = {'unet': fill(diffusers.UNet2DConditionModel(**{**UNET, **spec['unet']}), 'unet'),
                     'vae': fill(diffusers.AutoencoderKL(**{**VAE, **spec['vae']}), 'vae')}
            for i, text in enumerate(spec['text']):
                end = f'_{i + 1}' if i else ''
                kind = CLIPTextModelWithProjection if 'projection_dim' in text else CLIPTextModel
                parts[f'text_encoder{end}'] = fill(kind(CLIPTextConfig(**{**TEXT, **text})), f'text_encoder{end}')
                parts[f'tokenizer{end}'] = CLIPTokenizer.from_pretrained(
                    folder, model_max_length=TEXT['max_position_embeddings'])
            classes = {use: getattr(diffusers, spec['pipeline'].replace('Inpaint', '').replace('Pipeline', add)) for
                       use, add in zip(USES, ('Pipeline', 'Img2ImgPipeline', 'InpaintPipeline'), strict=True)}
            scheduler = getattr(diffusers, spec['scheduler']['_class_name']).from_config(spec['scheduler'])
            extra = {} if 'XL' in spec['pipeline'] else dict(
                safety_checker=None, feature_extractor=None, requires_safety_checker=False)
            pipes = {use: made(**parts, scheduler=scheduler, **extra) for use, made in classes.items()}
            for pipe in pipes.values():
                pipe.check_inputs = lambda *_, **__: None  # it wants multiples of 8 whatever the autoencoder's factor
            whole = folder / 'saved'
            pipes['inpaint' if case == 'inpainting' else 'text_to_image'].save_pretrained(whole)
            found[f'{case}/files'] = json.dumps({str(f.relative_to(whole)): f.read_text() for f in sorted(
                whole.rglob('*.json')) if 'tokenizer' not in f.parts[-2]})
            spread = []
            for key, (use, size, name, steps, scale, more) in variants(case).items():
                pipe = pipes[use]
                start['x_T'] = torch.from_numpy(noise(size).transpose(0, 3, 1, 2).copy())
                pipe.scheduler = getattr(diffusers, name).from_config(spec['scheduler'])
                pipe.set_progress_bar_config(disable=True)
                given = dict(prompt=PROMPTS, negative_prompt=[NEGATIVE] * BATCH, num_inference_steps=steps,
                             guidance_scale=scale, output_type='np')
                if use == 'text_to_image':
                    given |= dict(height=size[0], width=size[1], latents=start['x_T'].clone())
                else:
                    given |= dict(image=[Image.fromarray(picture(size))] * BATCH)
                    given |= dict(strength=STRENGTH[steps] if use == 'image_to_image' else 1.0 if steps != 5 else 0.8)
                if use == 'inpaint':
                    given |= dict(mask_image=[Image.fromarray(mask(size))] * BATCH, height=size[0], width=size[1])
                given |= more
                with torch.no_grad():
                    pictures = np.round(255 * np.asarray(pipe(**given).images)).astype(np.uint8)
                spread.append((pictures.astype(float).std(), np.abs(pictures[0].astype(float) - pictures[1]).mean()))
                found[key] = pictures
            print(case, 'pixel standard deviation and distance of the prompts, least and mean:',
                  np.min(spread, 0).round(1), np.mean(spread, 0).round(1))
    path = Path(__file__).with_name('pipelines.npz')
    np.savez_compressed(path, **found)
    print(f'{path.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
    main()
