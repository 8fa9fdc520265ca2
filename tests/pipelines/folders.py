"""Small random pipelines in the layout of the hub, with the weights that tests/golden/make_pipelines.py draws."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.interop.classes import abstract_params, module_from
from gen_jax.interop.export import save_model
from gen_jax.interop.torch_layout import flatten, from_torch, torch_shape
from tests.golden.make_pipelines import CASES, parameter, vocabulary

GOLDEN = np.load(Path(__file__).parent.parent / 'golden' / 'pipelines.npz')


def drawn(part: str, module) -> dict:
    """The parameters of a part."""
    shapes = abstract_params(module)
    state = {key: parameter(part, key, torch_shape(path, leaf.shape)) for key, (path, leaf) in flatten(shapes).items()}
    return jax.tree.map(jnp.asarray, from_torch(state, shapes))


def write(case: str, folder: Path) -> Path:
    """The pipeline of a case: model_index.json, the configs that diffusers wrote, weights and tokenizers."""
    files = json.loads(str(GOLDEN[f'{case}/files']))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for name in files:
        part, _, file = name.partition('/')
        if file == 'config.json':
            module = module_from(json.loads(files[name]), name)
            save_model(module, drawn(part, module), folder / part)
            (folder / name).write_text(files[name])
    # As published, with what its class says; diffusers would write the defaults of that class too, for others to read.
    (folder / 'scheduler' / 'scheduler_config.json').write_text(json.dumps(CASES[case]['scheduler']))
    vocab, merges = vocabulary()
    for name in ('tokenizer', 'tokenizer_2')[:1 + ('text_encoder_2/config.json' in files)]:
        (folder / name).mkdir()
        (folder / name / 'vocab.json').write_text(json.dumps(vocab))
        (folder / name / 'merges.txt').write_text(merges)
        config = {'model_max_length': 24, 'bos_token': '<|startoftext|>', 'eos_token': '<|endoftext|>',
                  'unk_token': '<|endoftext|>', 'pad_token': '<|endoftext|>'}
        (folder / name / 'tokenizer_config.json').write_text(json.dumps(config))
    return folder
