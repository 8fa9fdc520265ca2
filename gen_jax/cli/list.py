"""gen-jax list: what a config may name."""

from gen_jax.cli.options import parse, parser


def run(argv) -> int:
    """Runs the command."""
    p = parser('list', 'List the configs, or the names of one kind: ' + ', '.join(_kinds()))
    p.add_argument('kind', nargs='?', default='configs')
    args, _ = parse(p, argv)
    if args.help:
        print(p.format_help())
        return 0
    from gen_jax.config import ConfigError, config_names
    if args.kind == 'configs':
        for name, path in sorted(config_names().items()):
            text = path.read_text().partition('"""')[2]
            print(f'{name:16}{text.strip().splitlines()[0] if text else ""}')
        return 0
    if args.kind not in _kinds():
        raise ConfigError(f'gen-jax list {args.kind}: choose from {", ".join(_kinds())}')
    import importlib
    if args.kind in _SAMPLING:
        from gen_jax import sampling
        from gen_jax.sampling import grids
        for name in (sampling.SOLVERS, sampling.CORRECTORS, grids.SPACINGS)[_SAMPLING.index(args.kind)]:
            row = sampling.SAMPLERS.get(name)
            print(f'{name:28}{row.reference if row else ""}'.rstrip())
        return 0
    for name in sorted(importlib.import_module(f'gen_jax.{args.kind}').__all__):
        thing = getattr(importlib.import_module(f'gen_jax.{args.kind}'), name)
        text = (thing.__doc__ or '').strip() if callable(thing) else str(thing)
        print(f'{args.kind}.{name:28}{text.splitlines()[0] if text else ""}')
    return 0


_SAMPLING = ('solvers', 'correctors', 'spacings')


def _kinds() -> tuple[str, ...]:
    from gen_jax.config import NAMESPACES
    return ('configs', *_SAMPLING, *NAMESPACES)
