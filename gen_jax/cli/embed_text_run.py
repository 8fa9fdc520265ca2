"""What `gen-jax embed-text` does: which captions, and the trained encoder as a function of texts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gen_jax.build import Loaded, open_split
from gen_jax.config import ConfigError, from_json, make, to_json
from gen_jax.data.text_cache import captions_of, write_text_cache
from gen_jax.engine.fingerprint import fingerprints

__all__ = ['captions_of_config', 'embed_text']

_TEXT = ('tokenize', 'text_embeddings')


def _text_transform(config):
    """The spec of the transform that reads the text; ConfigError if there is none or several."""
    transforms = json.loads(to_json(config))['data']['transforms']
    found = [t for t in transforms if isinstance(t, dict) and t.get('name') in _TEXT]
    if len(found) != 1:
        raise ConfigError(f'data.transforms has {len(found)} of {" and ".join(_TEXT)}; the captions are those that one '
                          'of them reads')
    return found[0]


def captions_of_config(config, splits: Sequence[str] | None = None) -> list[str]:
    """The distinct captions of a config's data, from the entry that its tokenize or text_embeddings reads.

    Args:
        splits: of the source; None takes those of training and of every entry of config.evaluate, each with its own
            source and options.
    """
    key, plain = _text_transform(config).get('key', 'caption'), json.loads(to_json(config))
    wanted = [(split, '', {}) for split in splits or (config.data.train_split,)]
    if splits is None:
        wanted += [(spec.get('split') or config.data.eval_split, spec.get('source') or '',
                    spec.get('data_options') or {}) for spec in plain['evaluate'].values()]
    found: dict[str, None] = {}
    for split, source, options in {json.dumps(each, sort_keys=True): each for each in wanted}.values():
        options = {**({} if source else plain['data']['options']), **options}
        source = source or config.data.source
        if source == 'shapes':
            options['fields'] = [key]  # the pictures need not be drawn
        part = {**plain['data'], 'source': source, 'options': options, 'transforms': [], 'eval_transforms': []}
        source, _ = open_split(from_json(json.dumps({**plain, 'data': part})), split)
        found.update(dict.fromkeys(captions_of(source, key)))
    return list(found)


def embed_text(loaded: Loaded, captions: Iterable[str], root, batch_size: int = 256, dtype: str = 'float16') -> Path:
    """Writes the captions' embeddings by a trained CLIP, see `write_text_cache`; returns the folder.

    Args:
        loaded: of `gen_jax.load`; its system has the predict 'text_states', its data a tokenizer.

    Raises:
        ConfigError: a run of something else.
    """
    if 'text_states' not in loaded.predictor.system.predict:
        raise ConfigError(f'{loaded.workdir} is a run of {loaded.config.system.name}, which has no predict '
                          "'text_states'; choose the run of a CLIP (systems.clip)")
    spec = _text_transform(loaded.config)
    if spec['name'] != 'tokenize':
        raise ConfigError(f'{loaded.workdir} was trained on cached embeddings; choose the run that they came from')
    tokenize = make(spec, 'data.transforms')
    variables, rng = loaded.predictor.place(loaded.variables), np.random.default_rng(0)

    def encode(texts):
        tokens = np.stack([tokenize.apply({tokenize.spec['key']: text}, rng)['tokens'] for text in texts])
        padded = np.concatenate([tokens, np.repeat(tokens[-1:], batch_size - len(tokens), 0)])  # compiled once
        out = loaded.predictor.call('text_states', variables, seed=0, first=0, batch={'tokens': padded},
                                    options=loaded.predictor.options('text_states', {}))
        return out['encoder_hidden_states'][:len(texts)], out['pooled'][:len(texts)]

    encoder = {'weights': fingerprints(loaded.variables.params), 'tokenizer': tokenize.spec['tokenizer'],
               'network': json.loads(to_json(loaded.config))['system']['network']}
    return write_text_cache(root, captions, encode, encoder, batch_size=batch_size, dtype=dtype)
