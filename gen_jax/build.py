"""The one wiring point: a config becomes data, system, metrics and state. Nothing else sees all the parts."""

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import config as config_lib
from gen_jax.config import ConfigError, make
from gen_jax.data import fingerprint as fingerprint_lib
from gen_jax.data import pipeline
from gen_jax.data.sources import open_source
from gen_jax.engine import images
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints
from gen_jax.engine.evaluate import Evaluator, Predictor, evaluate, options_of, recipe
from gen_jax.engine.optim import make_optimizer, make_schedule
from gen_jax.engine.sharding import make_mesh
from gen_jax.engine.train import Run
from gen_jax.engine.update import init_state, variables_of
from gen_jax.nn.remat import check_remat
from gen_jax.types import System, TrainState, Variables

__all__ = ['build', 'make_system', 'load', 'Loaded', 'predictor_for']


def _specs(values) -> tuple:
    return tuple(make(dict(v) if isinstance(v, Mapping) else v, 'data.transforms') for v in values)


def _plain(config) -> Any:
    return json.loads(config_lib.to_json(config))


def open_split(config, split: str, train: bool = False):
    """(source, transforms) of a split."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in _plain(config.data.options).items()}
    try:
        source = open_source(config.data.source, split=split, **options)
    except TypeError as e:
        raise ConfigError(f'data.options {options} do not fit data.source {config.data.source!r}: {e}') from None
    return source, _specs(config.data.transforms if train else config.data.eval_transforms or config.data.transforms)


def make_system(config) -> System:
    """The system that config.system names, with the optimizers of config.optim."""
    spec = _tuples(_plain(config.system))
    if config.train.precision not in ('float32', 'bfloat16'):
        raise ConfigError(f'train.precision {config.train.precision!r}: choose from float32, bfloat16')
    if config.train.precision != 'float32':
        spec = _with_dtype(spec, config.train.precision)
    if config.train.remat:
        spec = _with_remat(spec, config.train.remat)
    system = make(spec, 'systems')
    optim = _tuples(_plain(config.optim))
    per = optim.pop('per')
    names = sorted({o.optimizer for o in system.objectives.values()})
    unknown = set(per) - set(names)
    if unknown:
        raise ConfigError(f'optim.per has settings for {sorted(unknown)[0]!r}: the system has the optimizers {names}')
    optimizers = {}
    for name in names:
        settings = {**optim, **per.get(name, {})}
        try:
            optimizers[name] = make_optimizer(**settings, steps=config.train.steps)
        except TypeError as e:
            raise ConfigError(f'optim.per.{name}: {e}') from None
    return system._replace(optimizers=optimizers)


def _tuples(value):
    if isinstance(value, Mapping):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _with_dtype(spec, precision):
    """Every network of a system spec computes in this precision."""
    def takes_dtype(value):
        name = str(value.get('name', '')) if isinstance(value, Mapping) else ''
        if name.startswith('models.'):
            return True
        return ':' in name and 'dtype' in inspect.signature(config_lib.lookup(name)).parameters

    return {k: {**v, 'dtype': precision} if takes_dtype(v) else v for k, v in spec.items()}


def _with_remat(spec, policy):
    """Every network of a system spec that is made of blocks recomputes them in the backward pass."""
    check_remat(policy)
    networks = {k: v['name'] for k, v in spec.items() if isinstance(v, Mapping) and 'name' in v}
    able = [k for k, name in networks.items() if 'remat' in config_lib.keywords(name)]
    if not able:
        raise ConfigError(f'train.remat={policy!r}: no network of {spec.get("name")} has blocks that could be '
                          f"recomputed (a keyword 'remat'); it is made of {', '.join(networks.values()) or 'nothing'}")
    return {k: {**v, 'remat': policy} if k in able else v for k, v in spec.items()}


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


def _label_batches(n: int, batch_size: int, classes: int, labels, conditional: bool = True):
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


def make_evaluator(config, system: System, name: str, spec: Mapping) -> Evaluator:
    """An Evaluator from one entry of config.evaluate (or config.sample)."""
    spec, where = _tuples(_plain(spec)), name if name == 'sample' else f'evaluate.{name}'
    unknown = set(spec) - set(config_lib.EVALUATION)
    if unknown:
        raise ConfigError(f'{where} has no setting {sorted(unknown)[0]!r}: choose from '
                          f'{", ".join(config_lib.EVALUATION)}')
    s = {**config_lib.EVALUATION, **spec}
    s['split'] = s['split'] or config.data.eval_split
    ema = s['ema'] if s['ema'] is not None else next(iter(config.train.ema), None)
    split_config = config
    if s['data_options']:
        split_config = config_lib.from_json(config_lib.to_json(config))
        split_config.data.options.update(s['data_options'])
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
        source, transforms = open_split(config, s['split'])
        settings = {'tokens': _caption_tokens(source, transforms)}
    options_of(system, s['predict'], settings)
    conditional = 'label' in system.predict[s['predict']].reads
    if ema and ema not in config.train.ema:
        raise ConfigError(f'{where}.ema {ema!r}: choose from {sorted(config.train.ema)}, or empty for raw parameters')

    def batches(ledger=None):
        source, transforms = open_split(split_config, s['split'])
        if s['on'] == 'labels':
            classes = source.info.get('num_classes') or 0
            return _label_batches(s['n'], min(s['batch_size'], s['n']), classes, s['labels'], conditional)
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


def build(config) -> Run:
    """Everything that `gen_jax.engine.train.train` needs.

    Raises:
        ConfigError and ValueError: names, values and combinations that do not work, before anything is written.
    """
    system = make_system(config)
    source, transforms = open_split(config, config.data.train_split, train=True)
    common = {'batch_size': config.data.batch_size, 'seed': config.seed, 'transforms': transforms}

    def open_data(shard_index, shard_count, ledger):
        return pipeline.train_iterator(source, **common, shard_index=shard_index, shard_count=shard_count,
                                       ledger=ledger, num_threads=config.data.threads, buffer_size=config.data.buffer)

    with open_data(0, 1, None) as data:
        example = data.batch(0)
    evaluators = {name: make_evaluator(config, system, name, spec) for name, spec in config.evaluate.items()}
    sampler = None
    if config.sample.predict:
        spec = {**_plain(config.sample), 'on': 'labels', 'metrics': (), 'split': config.data.train_split}
        sampler = make_evaluator(config, system, 'sample', spec)
    optim = _tuples(_plain(config.optim))
    schedules = {}
    for name in system.optimizers:
        s = {**optim, **optim['per'].get(name, {})}
        schedules[name] = make_schedule(s['schedule'], s['lr'], config.train.steps, s['warmup_steps'])
    info = json.loads(json.dumps({k: source.info.get(k) for k in ('num_classes', 'label_names', 'image_shape')}))
    return Run(config, system, open_data, fingerprint_lib.check_fingerprint, example, evaluators, sampler, schedules,
               info)


@functools.lru_cache(maxsize=8)
def _predictor(system_json: str, mesh) -> Predictor:
    return Predictor(make_system(config_lib.from_json(system_json)), mesh)


def predictor_for(config, mesh=None) -> Predictor:
    """A Predictor; configs with equal `system` and precision share one, so that rebuilding compiles nothing anew."""
    relevant = config_lib.base_config()
    relevant = {**_plain(relevant), 'system': _plain(config.system),
                'train': {**_plain(relevant.train), 'precision': config.train.precision}}
    return _predictor(json.dumps(relevant, sort_keys=True), mesh or make_mesh({'data': -1}))


class Loaded(NamedTuple):
    """A trained system, ready to use from Python."""

    config: Any
    step: int
    variables: Variables
    predictor: Predictor
    num_classes: int
    state: TrainState
    ema: str | None
    """The EMA that was asked for; None: each use takes its config's."""
    workdir: Path

    def sample(self, n: int | None = None, labels='balanced', seed: int = 0, batch_size: int = 100,
               **settings) -> dict[str, np.ndarray]:
        """Generates n examples: {'image' uint8 [n, H, W, C], 'label' [n] of a conditional model}.

        Image k depends on (seed, k) only.

        Args:
            n: how many; default 10 a class, or as many as there are labels.
            labels: 'balanced', or class numbers, repeated to n.
            settings: of the predict (steps, guidance_scale, eta ...); what is not given comes from config.sample.
        """
        from gen_jax.data.transforms import to_uint8

        given = None if isinstance(labels, str) else list(np.atleast_1d(labels))
        if given is not None and (not given or any(int(v) != v for v in given)):
            raise ValueError(f'labels {labels!r}: give class numbers, at least one')
        n = n if n is not None else len(given) if given else 10 * max(self.num_classes, 1)
        if n < 1:
            raise ValueError(f'n {n}: at least 1')
        settings = {**_tuples(_plain(self.config.sample.settings)), **settings}
        predict = self.config.sample.predict
        options = self.predictor.options(predict, settings)
        conditional = 'label' in self.predictor.system.predict[predict].reads
        if given and not conditional:
            raise ValueError(f'labels {given}: this model is not conditioned on labels')
        images, used = [], []
        batches = _label_batches(n, min(batch_size, n), self.num_classes, labels, conditional)
        for out, batch in self.predictor.stream(predict, self.variables, seed=seed, batches=batches, options=options):
            images.append(np.asarray(to_uint8(out['image']))[batch['valid']])
            used.append(batch['label'][batch['valid']] if conditional else [])
        return {'image': np.concatenate(images), **({'label': np.concatenate(used)} if conditional else {})}

    def predict(self, name: str, batch: Mapping[str, np.ndarray], seed: int = 0, **settings) -> dict[str, np.ndarray]:
        """Any predict of the system on one batch, for instance 'reconstruct' or 'encode'.

        Args:
            batch: leading axis B, or 1 for what all examples share; 'image' is uint8 or floating point in [-1, 1].

        Raises:
            ValueError: pictures, labels or masks that the system cannot take.
        """
        _check_batch(batch, self.num_classes)
        options = self.predictor.options(name, settings)
        return self.predictor.call(name, self.predictor.place(self.variables), seed=seed, first=0, batch=batch,
                                   options=options)

    def from_data(self, predict: str, n: int = 10, seed: int = 0, **settings) -> dict[str, np.ndarray]:
        """Pictures that start from the first n examples of the evaluation split ('reconstruct', 'interpolate' ...).

        Returns:
            {'image' uint8 [n, S, H, W, C], 'label' [n] if the data have labels}: what the predict made of each
            example, behind the example itself where the predict returns one picture for it. A predict that returns no
            pictures ('likelihood', 'losses') gives its arrays [n, ...] as they are.
        """
        from gen_jax.data.transforms import to_uint8

        if n < 1:
            raise ValueError(f'n {n}: at least 1')
        source, transforms = open_split(self.config, self.config.data.eval_split)
        batch = next(iter(pipeline.eval_batches(source, batch_size=min(n, len(source)), transforms=transforms)))
        out = self.predict(predict, batch, seed=seed, **settings)
        if 'image' not in out:
            return out
        made = np.asarray(to_uint8(out['image']))
        made = made if made.ndim == 5 else np.stack([batch['image'], made], 1)
        return {'image': made, **({'label': batch['label']} if 'label' in batch else {})}

    def evaluate(self, name: str, picture: Path | None = None) -> dict[str, Any]:
        """One entry of config.evaluate: its metrics, and 'recipe', what they depend on besides the weights.

        Args:
            picture: a PNG of the first images that the predict makes, up to 20, is written there; 'pictures' in the
                result is its name. Image k depends on (seed, k), so the pictures of two runs show the same noise.
        """
        if name not in self.config.evaluate:
            raise ConfigError(f'the config evaluates {sorted(self.config.evaluate)}, not {name!r}')
        evaluator = make_evaluator(self.config, self.predictor.system, name, self.config.evaluate[name])
        evaluator = evaluator._replace(ema=self.ema if self.ema is not None else evaluator.ema)
        seen = []

        def watch(outputs):
            made = outputs.get('image')
            if made is not None and made.ndim == 4 and made.shape[-1] in (1, 3) and sum(map(len, seen)) < 20:
                seen.append(made[:20])

        found = evaluate(evaluator, self.predictor, variables_of(self.state, evaluator.ema),
                         self.workdir / 'corrupt-evaluation.jsonl', watch)
        found['recipe'] = {**recipe(evaluator, self.predictor.system), 'step': self.step}
        if picture and seen:
            images.save_png(picture, images.grid(images.to_uint8(np.concatenate(seen)[:20]), columns=10,
                                                 scale=None))
            found['pictures'] = picture.name
        return found


def _check_batch(batch: Mapping[str, Any], classes: int) -> None:
    image, label = (np.asarray(batch[k]) if k in batch else None for k in ('image', 'label'))
    if image is not None and image.dtype != np.uint8:
        values = image.astype(np.float32)
        if not np.isfinite(values).all() or np.abs(values).max(initial=0) > 1.001:
            raise ValueError(f"'image' is {image.dtype} with values from {values.min():.4g} to {values.max():.4g}: "
                             'give uint8, or floating point in [-1, 1]')
    if label is not None and classes and label.size and not (
            label.dtype.kind in 'iu' and 0 <= label.min() and label.max() < classes):
        raise ValueError(f"'label' is {label.dtype} from {label.min()} to {label.max()}: the model knows the classes "
                         f'0 to {classes - 1}')


def load(workdir, step: int | None = None, ema: str | None = None, overrides=()) -> Loaded:
    """Reads a trained run: its config and its newest (or the given) checkpoint. The data need not be there.

    Args:
        ema: an EMA's name; None takes config.sample.ema or the first; '' the raw parameters.
        overrides: '--config.a.b=value' strings, for instance another solver.

    Raises:
        CheckpointError: no run or no checkpoint there.
    """
    workdir = Path(workdir)
    path = workdir / 'config.json'
    if not path.exists() and not (workdir / 'checkpoints').is_dir():
        raise CheckpointError(f'{workdir} holds no run (no config.json): train first, or check --workdir')
    store = Checkpoints(workdir, read_only=True)
    meta = store.meta(step)
    text = path.read_bytes() if path.exists() else json.dumps(meta['config'])  # each checkpoint holds a copy
    config = config_lib.complete(config_lib.from_json(text))
    config = config_lib.apply_overrides(config, overrides)
    predictor = predictor_for(config)
    example = {k: jax.ShapeDtypeStruct(tuple(shape), dtype) for k, (shape, dtype) in meta['example'].items()}
    averages = {k: dict(v) for k, v in config.train.ema.items()}
    target = jax.eval_shape(lambda batch: init_state(make_system(config), config.seed, batch, averages), example)
    state, meta = store.restore(target, step=step)
    store.close()
    state = TrainState(*state)
    chosen = ema
    if chosen is None:
        chosen = config.sample.ema if config.sample.ema is not None else next(iter(averages), '')
    return Loaded(config, int(meta['step']), variables_of(state, chosen), predictor,
                  meta['info'].get('num_classes') or 0, state, ema, workdir)
