"""What diffusers and transformers do with a folder; run by the reference environment's Python, which has no gen_jax.

    python peer.py forward FOLDER GIVEN.npz OUT.npz     loads the folder and applies it to arrays in torch's layout
    python peer.py save CONFIG.json FOLDER [OPTIONS]    saves a random network of a config with save_pretrained
    python peer.py from_single FILE PARTS.json OUT.npz  reads Stable Diffusion 1.x in one file into diffusers' keys
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)


def find(config):
    """The published class of a config."""
    name = config.get('_class_name')
    if name:
        import diffusers
        return getattr(diffusers, name)
    import transformers
    return getattr(transformers, config['architectures'][0])


def load(folder):
    return find(json.loads((Path(folder) / 'config.json').read_text())).from_pretrained(folder).eval()


def answer(model, given):
    """The network's output as arrays."""
    name = type(model).__name__
    given = {k: torch.from_numpy(v) for k, v in given.items()}
    if name == 'UNet2DModel':
        return {'y': model(given['x'], given['t'], given.get('class_labels')).sample}
    if name == 'UNet2DConditionModel':
        return {'y': model(given['x'], given['t'], given['text']).sample}
    if name == 'AutoencoderKL':
        posterior = model.encode(given['x']).latent_dist
        return {'mean': posterior.mean, 'log_var': posterior.logvar, 'y': model.decode(posterior.mean).sample}
    if name == 'CLIPModel':
        out = model(input_ids=given['tokens'], pixel_values=given['x'])
        return {'image': out.image_embeds, 'text': out.text_embeds}
    out = model(given['tokens'] if 'Text' in name else given['x'])
    found = {'state': out.last_hidden_state}
    embeds = getattr(out, 'text_embeds', getattr(out, 'image_embeds', None))
    return {**found, 'pooled': out.pooler_output} if embeds is None else {**found, 'embeds': embeds}


def forward(folder, given, out):
    with torch.no_grad():
        found = answer(load(folder), dict(np.load(given)))
    np.savez(out, **{k: v.numpy() for k, v in found.items()})


def save(config, folder, options='{}'):
    torch.manual_seed(0)
    config = json.loads(Path(config).read_text())
    cls = find(config)
    if '_class_name' in config:
        model = cls.from_config(config)
    else:
        model = cls(cls.config_class(**config))
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at zero or one
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if parameter.ndim < 2 else parameter[0].numel()**-0.5))
    options = json.loads(options)
    if 'dtype' in options:
        dtype = getattr(torch, options.pop('dtype'))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    model.save_pretrained(folder, **options)


def from_single(file, parts, out):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    from safetensors.torch import load_file
    parts, tensors, found = json.loads(Path(parts).read_text()), load_file(file), {}
    for name, convert in (('unet', convert_ldm_unet_checkpoint), ('vae', convert_ldm_vae_checkpoint)):
        found |= {f'{name}/{k}': v for k, v in convert(dict(tensors), parts[name]).items()}
    np.savez(out, **{k: v.numpy() for k, v in found.items()})


if __name__ == '__main__':
    {'forward': forward, 'save': save, 'from_single': from_single}[sys.argv[1]](*sys.argv[2:])
