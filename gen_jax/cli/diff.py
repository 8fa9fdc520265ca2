"""gen-jax diff: the settings in which two configs differ."""

from pathlib import Path

from gen_jax.cli.options import fail, parse, parser


def run(argv) -> int:
    """Runs the command."""
    p = parser('diff', 'The settings in which two runs or configs differ. A and B are run folders, config.json files, '
               'or\nconfigs (NAME[:ARG] or a .py file).\n\nexit codes: 0 no difference; 1 some; 2 bad input')
    p.add_argument('configs', metavar='A B', nargs='*')
    args, overrides = parse(p, argv)
    if args.help:
        print(p.format_help())
        return 0
    if len(args.configs) != 2 or overrides:
        return fail('gen-jax diff: needs two runs or configs, for instance gen-jax diff runs/a runs/b')
    from gen_jax.config import differences
    from gen_jax.report.compare import show
    found = differences(*map(load, args.configs))
    if not found:
        print('no difference')
        return 0
    rows = [('', *args.configs), *((key, show(old), show(new)) for key, (old, new) in found.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for key, old, new in rows:
        print(f'{key:{widths[0]}}  {old:{widths[1]}}  {new}')
    return 1


def load(name: str):
    """The config of a run folder, a config.json, or by name; ConfigError if there is none."""
    from gen_jax.config import ConfigError, complete, from_json, load_config
    path = Path(name)
    if path.is_dir() and (path / 'config.json').is_file():
        path = path / 'config.json'
    elif path.suffix != '.json':
        try:
            return load_config(name)  # a config may be called as a folder here is
        except ConfigError:
            if not path.is_dir():
                raise
        path = path / 'config.json'
    if not path.is_file():
        raise ConfigError(f'{name}: there is no {path.name} here; name a run folder, a config.json or a config')
    try:
        return complete(from_json(path.read_text()))
    except (ConfigError, ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f'{path} cannot be read as a config ({type(e).__name__}: {e})') from None
