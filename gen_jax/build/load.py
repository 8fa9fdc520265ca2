"""A trained run, read back and ready to use."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import config as config_lib
from gen_jax.build.evaluators import label_batches, make_evaluator
from gen_jax.build.parts import make_system, open_split, plain, tuples
from gen_jax.config import ConfigError
from gen_jax.data import pipeline
from gen_jax.engine import images
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints
from gen_jax.engine.evaluate import Predictor, evaluate, recipe
from gen_jax.engine.sharding import make_mesh
from gen_jax.engine.update import init_state, variables_of
from gen_jax.types import TrainState, Variables

__all__ = ['Loaded', 'load', 'predictor_for']


@functools.lru_cache(maxsize=8)
def _predictor(system_json: str, mesh) -> Predictor:
    return Predictor(make_system(config_lib.from_json(system_json)), mesh)


def predictor_for(config, mesh=None) -> Predictor:
    """A Predictor; configs with equal `system` and precision share one, so that rebuilding compiles nothing anew."""
    relevant = config_lib.base_config()
    relevant = {**plain(relevant), 'system': plain(config.system),
                'train': {**plain(relevant.train), 'precision': config.train.precision}}
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
        settings = {**tuples(plain(self.config.sample.settings)), **settings}
        predict = self.config.sample.predict
        options = self.predictor.options(predict, settings)
        conditional = 'label' in self.predictor.system.predict[predict].reads
        if given and not conditional:
            raise ValueError(f'labels {given}: this model is not conditioned on labels')
        images, used = [], []
        batches = label_batches(n, min(batch_size, n), self.num_classes, labels, conditional)
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
