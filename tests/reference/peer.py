"""What diffusers and transformers do with a folder; run by the reference environment's Python, which has no gen_jax.

    python peer.py COMMAND ARGUMENTS...
    python peer.py serve          reads [COMMAND, ARGUMENTS...] as JSON, a line each, and answers each with a line

    forward FOLDER GIVEN.npz OUT.npz        loads the folder and applies it to arrays in torch's layout
    save CONFIG.json FOLDER [OPTIONS]       saves a random network of a config with save_pretrained
    from_single FILE PARTS.json OUT.npz     reads Stable Diffusion 1.x in one file into diffusers' keys
    draw FOLDER OWN GIVEN.npz OUT.npz       draws with a pipeline, and saves it into OWN with save_pretrained
    single FILE FOLDER GIVEN.npz OUT.npz    draws with Stable Diffusion 1.x in one file; FOLDER has the configs
    defaults OUT.json CLASSES...            the fields of classes of diffusers and their defaults
    execute FILE.py FOLDER                  runs a file in a folder; what it is warned of is an error
"""

import inspect
import json
import logging
import os
import sys
import tempfile
import traceback
import warnings
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
    cls = find(json.loads((Path(folder) / 'config.json').read_text()))
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    if wrong := {k: sorted(map(str, v)) for k, v in info.items() if v}:
        raise SystemExit(f'{cls.__name__}: {wrong}')
    return model.eval()


def heard(make):
    """make()'s result, and what was logged or warned of meanwhile, whoever would have printed it.

    But for DeprecationWarnings, which libraries say to each other (torch's arrays to numpy) and Python hides.
    """
    said = []

    class Ear(logging.Handler):
        def emit(self, record):
            said.append(f'{record.name}: {record.getMessage()}')

    ear, loggers = Ear(logging.WARNING), [logging.getLogger(n) for n in (None, 'diffusers', 'transformers')]
    for logger in loggers:
        logger.addHandler(ear)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = make()
    for logger in loggers:
        logger.removeHandler(ear)
    return result, said + [f'{w.category.__name__}: {w.message}' for w in caught
                           if not issubclass(w.category, DeprecationWarning)]


def draw_with(pipe, given):
    """Pictures uint8 [B, H, W, 3]."""
    given = dict(np.load(given))
    start = torch.from_numpy(given['latents'])
    side = start.shape[-1] * pipe.vae_scale_factor
    with torch.no_grad():
        y = pipe([str(p) for p in given['prompts']], num_inference_steps=5, guidance_scale=7.5, latents=start,
                 height=side, width=side, output_type='np').images
    return np.round(255 * np.asarray(y)).astype(np.uint8)


def draw(folder, own, given, out):
    import diffusers
    cls = getattr(diffusers, json.loads((Path(folder) / 'model_index.json').read_text())['_class_name'])
    pipe, said = heard(lambda: cls.from_pretrained(folder))
    pictures, drawing = heard(lambda: draw_with(pipe, given))
    pipe.save_pretrained(own)
    _, theirs = heard(lambda: cls.from_pretrained(own))
    np.savez(out, pictures=pictures, said=json.dumps(said), theirs=json.dumps(theirs), drawing=json.dumps(drawing))


def single(file, folder, given, out):
    import diffusers
    pipe, said = heard(lambda: diffusers.StableDiffusionPipeline.from_single_file(
        file, config=folder, local_files_only=True, safety_checker=None, requires_safety_checker=False))
    np.savez(out, pictures=draw_with(pipe, given), said=json.dumps(said))


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


def defaults(out, *names):
    import diffusers
    found = {name: inspect.signature(getattr(diffusers, name).__init__).parameters.items() for name in names}
    Path(out).write_text(json.dumps({n: {k: p.default for k, p in v if k != 'self'} for n, v in found.items()}))


def execute(file, folder):
    from diffusers import StableDiffusionPipeline  # noqa: F401  what is said at import is of the environment
    os.chdir(folder)
    _, said = heard(lambda: exec(compile(Path(file).read_text(), file, 'exec'), {'__name__': '__main__'}))
    if said:
        raise SystemExit('\n'.join(said))


COMMANDS = {f.__name__: f for f in (forward, save, from_single, draw, single, defaults, execute)}


def serve():
    """Answers {'said': everything that was written to stdout and stderr, 'error': traceback or None}."""
    answers, heard = os.fdopen(os.dup(1), 'w'), tempfile.TemporaryFile()
    for descriptor in (1, 2):
        os.dup2(heard.fileno(), descriptor)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        os.ftruncate(heard.fileno(), 0)
        os.lseek(heard.fileno(), 0, os.SEEK_SET)
        error = None
        try:
            COMMANDS[command](*arguments)
        except BaseException:
            error = traceback.format_exc()
        sys.stdout.flush(), sys.stderr.flush()
        said = os.pread(heard.fileno(), 1 << 20, 0).decode(errors='replace')
        answers.write(json.dumps({'said': said, 'error': error}) + '\n')
        answers.flush()


if __name__ == '__main__':
    if sys.argv[1] == 'serve':
        serve()
    else:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
