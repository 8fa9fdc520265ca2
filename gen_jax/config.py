"""Configs: defaults, variants as arguments, overrides from the command line, and names turned into functions.

A config is an `ml_collections.ConfigDict` made by `get_config(arg)` in a file under `configs/` (or any .py file). It
stops at the door: `make` turns `{'name': 'diffusion.cosine', ...}` into `gen_jax.diffusion.cosine(...)`, and library
functions only ever see keywords.
"""

import ast
import contextlib
import copy
import importlib.util
import io
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from gen_jax.names import NAMESPACES, ConfigError, choices, keywords, lookup, make
from gen_jax.settings import differences, flatten, from_json, to_json

__all__ = ['EVALUATION', 'FREE_FORM', 'NAMESPACES', 'ConfigError', 'base_config', 'parse_arg', 'shrink', 'load_config',
           'load_module', 'blaming', 'apply_overrides', 'place_for', 'make', 'lookup', 'flatten', 'differences',
           'to_json', 'from_json', 'complete', 'config_names', 'placeholder', 'mutable_on_resume']

placeholder = config_dict.placeholder


def base_config() -> ConfigDict:
    """The complete tree of settings with their defaults; a config file fills in `system`, `data` and what differs."""
    c = ConfigDict()
    c.seed = 0  # the root of all randomness: parameters, noise, data order
    c.system = ConfigDict({'name': ''}, convert_dict=True)  # systems.NAME and its keyword arguments
    c.data = ConfigDict({
        'source': '',  # digits | shapes | folder:PATH | tfds:NAME
        'train_split': 'train', 'eval_split': 'test',
        'options': {},  # keywords of the source
        'batch_size': 128,  # global: over all devices and hosts
        'transforms': (),  # specs, for instance {'name': 'resize', 'size': 64}
        'eval_transforms': (),
        'threads': 2, 'buffer': 8,
    })
    c.frozen = ConfigDict({})  # NAME: {run: WORKDIR, params, ema} or {weights: FOLDER_OR_HUB_ID, subfolder, variant}
    c.optim = ConfigDict({
        'name': 'adam',  # adam | adamw | sgd | lion | adafactor
        'lr': 1e-3,
        'schedule': 'constant',  # constant | cosine | linear | rsqrt; over train.steps
        'warmup_steps': 0,
        'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'weight_decay': 0.0,
        'clip_norm': placeholder(float),  # global gradient norm; None: no clipping
        'lr_multipliers': ('.*=1',),  # 'REGEX=FACTOR', first match wins, every leaf must match; 0 freezes
        'per': {},  # overrides by optimizer name, for instance {'discriminator': {'lr': 4e-4}}
    })
    c.train = ConfigDict({
        'steps': 1000,
        'parallel': 'jit',  # jit (one sharded program over the mesh) | pmap
        'mesh': {'data': -1, 'fsdp': 1, 'model': 1},  # -1 takes the devices that are left
        'sharding': ('.*=',),  # 'REGEX=AXIS,AXIS,...' by leaf, empty: replicated; or 'fsdp' and / or 'tensor'
        'cpu_devices': 0,  # virtual devices on CPU; 0: one per core (as many as divide the batch)
        'accumulate': 1,  # micro-batches per step
        'remat': '',  # what the backward pass computes again: '' | full | dots | dots_no_batch ...
        'precision': 'float32',  # compute dtype of networks that take `dtype`: float32 | bfloat16
        'ema': {'slow': {'decay': 0.999, 'warmup': True}},  # several may be named; warmup: min(decay, (1+n)/(10+n))
        'nonfinite': 'raise',  # raise | skip | rollback (to the newest checkpoint, with other noise and data)
        'max_skips': 10,  # updates skipped in a row, then the run stops
        'max_rollbacks': 3,
        'accept': (),  # config, data, code: differences on resume that are accepted
        'max_seconds': placeholder(float),  # wall-time limit: save and exit with code 75, to be requeued
        'hang_seconds': placeholder(float),  # without progress for so long, end with code 70 and say where; None: wait
        'init_from': '',  # workdir or checkpoint folder to start the parameters from
        'init_map': ('(.*)=\\1',),  # 'REGEX=REPLACEMENT' from our leaf paths to theirs, first match wins; '' keeps init
        'init_ema': '',  # which EMA of init_from to read; empty: raw parameters
        'compile_cache': True,
    })
    c.checkpoint = ConfigDict({'every_steps': 500, 'keep_last': 2, 'keep_every': placeholder(int),
                               'best_metric': '', 'best_mode': 'min',
                               'verify': True,  # use no step whose files or leaves are not what was saved
                               'on_error': 'raise'})  # raise | continue: what a failed save does
    c.log = ConfigDict({'every_steps': 50, 'tensorboard': True, 'wandb': False})
    c.sample = ConfigDict({
        'predict': 'generate', 'every_steps': placeholder(int),  # None: only at the end
        'n': 100, 'columns': 10, 'seed': 0, 'ema': placeholder(str),  # None: the first EMA, or raw parameters
        'batch_size': 100,
        'labels': 'balanced',  # balanced | none
        'settings': {},  # of the predict: steps, guidance_scale, eta ...
    })
    c.evaluate = ConfigDict({})  # NAME: {predict, metrics, n, batch_size, settings, seed, ema, every_steps, ...}
    return c


def mutable_on_resume(key: str) -> bool:
    """Whether a run may be resumed with another value of this dotted key.

    The length of the run, logging, checkpoint retention, sampling and evaluation schedules may change; whatever shapes
    the mathematics (seed, system, data, optimizer, EMA, accumulation, precision, parallel mode) may not.
    """
    prefixes = ('log.', 'checkpoint.', 'sample.', 'evaluate.')
    exact = ('train.steps', 'train.max_seconds', 'train.nonfinite', 'train.compile_cache', 'train.cpu_devices',
             'train.hang_seconds',
             'train.max_skips', 'train.max_rollbacks', 'train.accept', 'train.remat', 'train.sharding',
             'train.init_from', 'train.init_map', 'train.init_ema', 'data.threads', 'data.buffer')
    return key.startswith(prefixes) or key in exact or key.startswith('train.mesh.')


# ---------------------------------------------------------------- arguments and files


def parse_arg(arg: str, **defaults) -> ConfigDict:
    """Parses 'variant,key=value,flag' for `get_config(arg)`; the first default takes a bare first word.

    Values take the type of their default; a bare key of a bool default means True; a tuple default lists the choices,
    the first of which is the default. Unknown keys and values that are no choice raise ConfigError.

    Example:
        >>> a = parse_arg('vp,debug', variant=('ve', 'vp'), debug=False, steps=10)
        >>> (a.variant, a.debug, a.steps)
        ('vp', True, 10)
    """
    allowed = {k: v for k, v in defaults.items() if isinstance(v, tuple)}
    defaults = {k: v[0] if k in allowed else v for k, v in defaults.items()}
    out = dict(defaults)
    first = next(iter(defaults), None)
    for position, part in enumerate(p for p in (arg or '').split(',') if p):
        key, eq, value = part.partition('=')
        if not eq and isinstance(defaults.get(key), bool):
            out[key] = True
        elif not eq and position == 0 and isinstance(defaults.get(first), str):
            out[first] = key
        elif key not in defaults or not eq:
            raise ConfigError(f'config argument {part!r} is not understood: {choices(key, defaults)}')
        else:
            kind = type(defaults[key])
            try:
                out[key] = value.lower() in ('1', 'true', 'yes') if kind is bool else kind(value)
            except ValueError:
                raise ConfigError(f'config argument {key}={value!r}: expected {kind.__name__}') from None
    for key, values in allowed.items():
        if out[key] not in values:
            raise ConfigError(f'config argument {key}={out[key]!r}: choose from {", ".join(map(str, values))}')
    return ConfigDict(out)


def shrink(c: ConfigDict) -> None:
    """What the debug variants of image models share: four steps on embedded 8x8 digits, in place; what is evaluated
    while training is evaluated once, at the end. The network, and what depends on its size, is each config's own.
    """
    c.data.source, c.data.train_split, c.data.eval_split = 'digits', 'train', 'test'
    c.data.transforms = c.data.eval_transforms = ()
    c.data.batch_size = 16
    c.system.image_shape = (8, 8, 1)
    c.optim.warmup_steps = min(c.optim.warmup_steps, 1)
    c.train.steps = 4
    c.train.precision = 'float32'
    c.sample.n = 10
    c.sample.every_steps = None
    for name in c.evaluate:
        if c.evaluate[name].get('every_steps'):
            c.evaluate[name].every_steps = None
        if c.evaluate[name].get('on') == 'labels':
            c.evaluate[name].n = 20


def _config_dirs() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [d for d in (here / 'configs', here.parent / 'configs') if d.is_dir()]


def config_names() -> dict[str, Path]:
    """The configs that ship with gen_jax, by name."""
    return {p.stem: p for d in reversed(_config_dirs()) for p in sorted(d.glob('*.py')) if not p.stem.startswith('_')}


def load_config(spec: str) -> ConfigDict:
    """Loads 'NAME', 'NAME:ARG', 'path/to/file.py' or 'path/to/file.py:ARG'.

    Raises:
        ConfigError: if there is no such config; the message lists the names that exist.
    """
    name, _, arg = spec.partition(':')
    path, module = load_module(name)
    with blaming(path):
        config = module.get_config(arg)
    config.lock()
    return config


def load_module(name: str) -> tuple[Path, Any]:
    """(path, module) of a config 'NAME' or 'path/to/file.py', freshly executed.

    Raises:
        ConfigError: if there is no such config, or its file fails or defines no get_config.
    """
    path = Path(name) if name.endswith('.py') else config_names().get(name)
    if path is None or not path.is_file():
        kind = 'file' if name.endswith('.py') else 'config'
        raise ConfigError(f'there is no {kind} {name!r}: {choices(name, config_names())} '
                          '(or give a path to a .py file)')
    module_spec = importlib.util.spec_from_file_location(f'gen_jax_config_{path.stem}', path)
    module = importlib.util.module_from_spec(module_spec)
    if str(path.parent.resolve()) not in sys.path:  # modules beside a config file can be named in it
        sys.path.append(str(path.parent.resolve()))
    with blaming(path):
        module_spec.loader.exec_module(module)
        if not hasattr(module, 'get_config'):
            raise ConfigError('it defines no get_config(arg)')
    return path, module


@contextlib.contextmanager
def blaming(path: Path):
    """Turns whatever a user's config file raises into a ConfigError that names the file and the line."""
    try:
        yield
    except Exception as e:
        where = [f.lineno for f in traceback.extract_tb(e.__traceback__)
                 if Path(f.filename).resolve() == path.resolve()]
        what = str(e) if isinstance(e, ConfigError) else f'{type(e).__name__}: {e}'
        raise ConfigError(f'config {path}' + (f', line {where[-1]}' if where else '') + f': {what}') from e


def apply_overrides(config: ConfigDict, argv: Sequence[str]) -> ConfigDict:
    """Applies '--config.a.b=value' (or '--config.a.b value') to a copy of the config, types checked.

    Raises:
        ConfigError: unknown key (with the nearest names) or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    config = copy.deepcopy(config)
    known = flatten(config, leaves_only=False)
    argv = join_values(argv)
    for part in argv:
        key = part.lstrip('-').partition('=')[0]
        if not part.startswith('--config.'):
            raise ConfigError(f'argument {part!r} is not understood: overrides look like --config.train.steps=100')
    new = [part for part in argv if part.partition('=')[0].removeprefix('--config.') not in known]
    argv = [part for part in argv if part not in new]
    defaults = flatten(base_config())
    nones = [part for part in argv if part.partition('=')[2].lower() == 'none']
    argv = [part for part in argv if part not in nones]
    for part in nones:
        key = part.partition('=')[0].removeprefix('--config.')
        if key in defaults and defaults[key] is not None:
            raise ConfigError(f'{part}: {key} is not optional; its default is {defaults[key]!r}')
        parent, _, leaf = key.rpartition('.')
        owner = config[parent] if parent else config
        with config.unlocked(), owner.ignore_type():
            owner[leaf] = None
    values = flags.FlagValues()
    # config_flags reads sys.argv for the overrides' names, and prints; give it ours for the moment.
    with _argv(['gen-jax', *argv]), contextlib.redirect_stdout(io.StringIO()):
        try:
            config_flags.DEFINE_config_dict('config', config, flag_values=values)
            rest = values(sys.argv)[1:]
        except (flags.Error, ValueError, TypeError, AttributeError) as e:
            raise ConfigError(f'cannot set {" ".join(argv)}: {e}') from None
    if rest:
        raise ConfigError(f'{rest[0]!r} follows no --config key; overrides look like --config.train.steps=100')
    for part in sorted(new, key=lambda part: not part.partition('=')[0].endswith('.name')):
        key, equals, text = part.removeprefix('--config.').partition('=')
        owner, leaf = place_for(values.config, key, 'config.')
        if not equals:
            raise ConfigError(f'{part} has no value: overrides look like --config.train.steps=100')
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        with values.config.unlocked():
            owner[leaf] = value
    return values.config


def place_for(config: ConfigDict, key: str, prefix: str = '') -> tuple[ConfigDict, str]:
    """(mapping, key in it) for a dotted key that the config leaves out and that still means something.

    That is a keyword of the thing that a spec names (system.process.shift of diffusion.flow), the name of a spec that
    another leaves out (system.loss.name), and anything below `settings`, which the predict that reads it checks.

    Args:
        prefix: how the user writes keys, for the message.

    Raises:
        ConfigError: anything else, with the nearest names.
    """
    *parents, leaf = key.split('.')
    owner = config
    for depth, part in enumerate(parents):
        inner = owner.get(part)
        if inner is None and (part == 'settings' and takes(owner, part) or leaf == 'name' and depth == len(parents) - 1
                              and takes(owner, part)):
            with config.unlocked():
                inner = owner[part] = ConfigDict()
        if not isinstance(inner, ConfigDict):
            raise _unknown(config, key, prefix)
        owner = inner
    if parents[-1:] != ['settings'] and leaf != 'name' and not takes(owner, leaf):
        raise _unknown(config, key, prefix)
    return owner, leaf


def takes(spec: ConfigDict, keyword: str) -> bool:
    """Whether a mapping is a spec of something that has the keyword; ConfigError if it has others only."""
    name = spec.get('name')
    if not isinstance(name, str) or not ('.' in name or ':' in name):
        return False
    if keyword not in (accepted := keywords(name)):
        raise ConfigError(f'{name} takes no {keyword!r}: {choices(keyword, accepted)}')
    return True


def _unknown(config: ConfigDict, key: str, prefix: str) -> ConfigError:
    known = [prefix + k for k in flatten(config, leaves_only=False)]
    return ConfigError(f'unknown config key {prefix + key!r}: {choices(prefix + key, known)}')


def join_values(argv: Sequence[str]) -> list[str]:
    """['--config.a', 'b', '--config.c=d'] -> ['--config.a=b', '--config.c=d']; other arguments stay as they are."""
    out = []
    for part in argv:
        if not part.startswith('--') and out and out[-1].startswith('--config.') and '=' not in out[-1]:
            out[-1] += f'={part}'
        else:
            out.append(part)
    return out


@contextlib.contextmanager
def _argv(argv):
    saved, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = saved


# ---------------------------------------------------------------- saved configs


EVALUATION = {'predict': '', 'metrics': (), 'n': None, 'batch_size': 256, 'settings': {}, 'seed': 0, 'ema': None,
              'every_steps': None, 'labels': 'balanced', 'split': '', 'on': 'data', 'columns': 10, 'source': '',
              'data_options': {}}
"""What an entry of config.evaluate may say, and what holds where it says nothing; an empty split is data.eval_split.

`data_options` are put into data.options, or stand alone where `source` names other data than data.source."""

FREE_FORM = ('system', 'frozen', 'data.options', 'optim.per', 'train.ema', 'sample.settings', 'evaluate')


def complete(saved: Mapping) -> ConfigDict:
    """A saved config with the defaults of settings that did not exist when it was saved; ConfigError if it is none."""
    config = base_config()
    for key in FREE_FORM:  # as they were saved, nothing of the defaults mixed in
        parent, _, leaf = key.rpartition('.')
        (config[parent] if parent else config)[leaf] = ConfigDict()
    try:
        with config.unlocked(), config.ignore_type():
            config.update(saved)
    except (AttributeError, TypeError) as e:
        raise ConfigError(f'a saved config is none of gen_jax ({e}): delete config.json, checkpoints hold it') from None
    config.lock()
    return config
