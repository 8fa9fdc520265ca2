"""Where `gen-jax convert` gets its parts (name -> network and weights) and where it puts them."""

from pathlib import Path

from gen_jax.interop import classes, export, hub, single_file
from gen_jax.interop.load import Part, open_model
from gen_jax.interop.torch_layout import flatten, torch_view
from gen_jax.models.adm import Trunk

CONFIGS = 'published.json'
"""In a checkpoint that `convert` wrote: the config.json of each part."""


def is_run(source) -> bool:
    """Whether it is a folder of gen-jax train, or a checkpoint that `convert` wrote."""
    return (Path(source).expanduser() / 'checkpoints').is_dir()


def from_published(args) -> dict[str, Part]:
    """The parts of a folder, a hub id or a single file."""
    if Path(args.source).is_file():
        if not args.model:
            return single_file.open_single_file(args.source)
        return {'model': single_file.open_adm(args.source, _adm(args))}
    options = {'revision': args.revision, 'variant': args.variant}
    folder = hub.fetch(args.source, ['model_index.json', 'config.json'], revision=args.revision)
    if (folder / 'config.json').is_file():
        return {'model': open_model(args.source, **options)}
    folder = hub.resolve_pipeline(args.source, **options)
    names = [name for name, (_, kind) in hub.parts_of(folder).items() if kind in classes.CLASSES]
    return {name: open_model(folder, name, args.variant) for name in names}


def from_run(args) -> dict[str, Part]:
    """The networks of a trained run, or of a checkpoint that `convert` wrote, by the names of their parameters."""
    from gen_jax.cli.convert_run import modules_of, read_trees
    folder = Path(args.source).expanduser()
    modules, average = modules_of(folder, CONFIGS)
    if args.model:
        module = _adm(args)
        modules = {'model': (module, single_file.adm_params(module))}
    if not modules:
        raise ValueError(f'{folder}: no network of the run has a published layout; gen_jax exports '
                         f'{", ".join(classes.CLASSES)} and ADM')
    parts = {}
    for name, tree in read_trees(folder, args.step, average if args.ema is None else args.ema).items():
        keys = {key: torch_view(path, leaf) for key, (path, leaf) in flatten(tree).items()}
        found = [modules[name]] if name in modules else modules.values()  # a run does not say which is which
        fitting = [Part(module, params, keys, f'{folder}, {name}') for module, params in found]
        parts[name] = min(fitting, key=lambda part: len(part.match().problems()))
    return parts


def _adm(args):
    from gen_jax.names import make
    return make(args.model, 'models')


def write(parts, args) -> list[Path]:
    """Writes the parts as --to says; returns what was written."""
    out, dtype = Path(args.out), args.dtype
    if args.to == 'torch':
        return [export.save_model(*part.load(dtype), out if len(parts) == 1 else out / name, dtype,
                                  args.max_shard_size, args.variant) for name, part in parts.items()]
    loaded = {name: part.load(dtype) for name, part in parts.items()}
    if args.to == 'jax':
        from gen_jax.cli.convert_run import save_checkpoint
        return [save_checkpoint(loaded, out, CONFIGS)]
    if len(loaded) == 1 and isinstance(next(iter(loaded.values()))[0], Trunk):
        return [single_file.save_adm(*next(iter(loaded.values())), out)]
    return [single_file.save_single_file(loaded, out)]
