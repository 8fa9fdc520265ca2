"""Entries of config.evaluate and config.sample as Evaluators: which examples, which predict, which metrics."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from gen_jax import config as config_lib
from gen_jax.build.parts import open_split, plain, tuples
from gen_jax.config import ConfigError, make
from gen_jax.data import pipeline
from gen_jax.engine.evaluate import Evaluator, options_of
from gen_jax.types import System

__all__ = ['label_batches', 'make_evaluator']


def _metrics(names_or_specs, context: Mapping[str, Any]) -> dict:
    """Metrics by name; those that need real data get it by their parameters' names."""
    out = {}
    for spec in names_or_specs:
        spec = {'name': spec} if isinstance(spec, str) else dict(spec)
        name = spec['name'] if '.' in spec['name'] else f'metrics.{spec["name"]}'
        wanted = inspect.signature(config_lib.lookup(name)).parameters
        given = {k: context[k]() for k in context if k in wanted and k not in spec}
        label = json.dumps(spec, sort_keys=True, default=str)
        out[label] = make({**spec, 'name': name}, **given)
    return out


def _arrays(config, split):
    source, _ = open_split(config, split)
    items = [source[i] for i in range(len(source))]
    return np.stack([i['image'] for i in items]), np.array([i['label'] for i in items])


def label_batches(n: int, batch_size: int, classes: int, labels, conditional: bool = True):
    """Batches of labels to generate for: 'balanced' cycles through the classes, so that any first n are balanced.

    A predict that reads no labels gets an 'index' in their place: its pictures are of no class that was asked for.
    """
    if isinstance(labels, str):
        if labels not in ('balanced', 'none'):
            raise ConfigError(f'labels {labels!r}: choose from balanced, none, or give numbers')
        every = np.arange(n, dtype=np.int32) % max(classes, 1)
    else:
        wanted = np.asarray(labels, np.int32)
        if classes and (wanted.min() < 0 or wanted.max() >= classes):
            raise ConfigError(f'label {int(wanted.max() if wanted.max() >= classes else wanted.min())}: '
                              f'the model knows the classes 0 to {classes - 1}')
        every = np.resize(wanted, n)
    for first in range(0, n, batch_size):
        part = every[first:first + batch_size]
        rows = np.arange(first, first + batch_size)
        padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part))])
        yield {'label' if conditional else 'index': padded, 'valid': rows < n}


def _with_data(config, s: Mapping[str, Any]):
    """The config with the data of an entry of config.evaluate."""
    if not (s['data_options'] or s['source']):
        return config
    other = config_lib.from_json(config_lib.to_json(config))
    if s['source']:
        other.data.source, other.data.options = s['source'], {}
    other.data.options.update(s['data_options'])
    return other


def make_evaluator(config, system: System, name: str, spec: Mapping) -> Evaluator:
    """An Evaluator from one entry of config.evaluate (or config.sample)."""
    spec, where = tuples(plain(spec)), name if name == 'sample' else f'evaluate.{name}'
    unknown = set(spec) - set(config_lib.EVALUATION)
    if unknown:
        raise ConfigError(f'{where} has no setting {sorted(unknown)[0]!r}: choose from '
                          f'{", ".join(config_lib.EVALUATION)}')
    s = {**config_lib.EVALUATION, **spec}
    s['split'] = s['split'] or config.data.eval_split
    ema = s['ema'] if s['ema'] is not None else next(iter(config.train.ema), None)
    split_config = _with_data(config, s)
    context = {'train_images': lambda: _arrays(config, config.data.train_split)[0],
               'train_labels': lambda: _arrays(config, config.data.train_split)[1],
               'test_images': lambda: _arrays(config, config.data.eval_split)[0],
               'test_labels': lambda: _arrays(config, config.data.eval_split)[1],
               'oracle': lambda: config_lib.lookup('gen_jax.data.shapes_oracle:oracle')}

    for key in ('n', 'batch_size', 'columns'):
        if s[key] is not None and s[key] < 1 or s['on'] == 'labels' and s[key] is None:
            raise ConfigError(f'{where}.{key} {s[key]}: at least 1')
    settings = s['settings']
    if settings.get('captions') == 'classes':  # zero-shot: the source's own list of captions, as tokens
        source, transforms = open_split(split_config, s['split'])
        settings = {'tokens': _caption_tokens(source, transforms)}
    options_of(system, s['predict'], settings)
    conditional = 'label' in system.predict[s['predict']].reads
    if ema and ema not in config.train.ema:
        raise ConfigError(f'{where}.ema {ema!r}: choose from {sorted(config.train.ema)}, or empty for raw parameters')

    def batches(ledger=None):
        source, transforms = open_split(split_config, s['split'])
        if s['on'] == 'labels':
            classes = source.info.get('num_classes') or 0
            return label_batches(s['n'], min(s['batch_size'], s['n']), classes, s['labels'], conditional)
        size = min(s['batch_size'], len(source))
        return pipeline.eval_batches(source, batch_size=size, transforms=transforms, limit=s['n'],
                                     ledger=ledger)

    return Evaluator(s['predict'], batches, _metrics(s['metrics'], context), settings, s['seed'], ema, s['split'],
                     s['every_steps'])


def _caption_tokens(source, transforms):
    captions = source.info.get('class_captions')
    if captions is None:
        raise ConfigError("settings.captions='classes' needs a source whose info has class_captions")

    def tokens(text):
        example = {'image': np.zeros((1, 1, 3), np.uint8), 'caption': text, 'captions': [text]}
        for t in transforms:
            example = t.apply(example, np.random.default_rng(0))
        if 'tokens' not in example:
            raise ConfigError("the captions need tokens: add {'name': 'tokenize', ...} to data.transforms")
        return example['tokens']

    return np.array([[tokens(t) for t in ([c] if isinstance(c, str) else c)] for c in captions], np.int32)
