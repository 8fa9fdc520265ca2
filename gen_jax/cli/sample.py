"""gen-jax sample: pictures from a trained run."""

from pathlib import Path

from gen_jax.cli.options import fail, literal, parse, parser, prepare_jax, show_help


def run(argv) -> int:
    """Runs the command."""
    p = parser('sample', 'Generate pictures: OUT.png (a grid) and OUT.npz (image uint8 [n, H, W, C], label [n]).\n'
               'Image k depends on --seed and k only, not on --n or --batch-size.')
    p.add_argument('--workdir', metavar='DIR', help='a run made by gen-jax train')
    p.add_argument('--out', metavar='PATH', help='output path without suffix (default: WORKDIR/generated)')
    p.add_argument('--n', type=int, help='number of pictures (default: 10 a class, or one for each of --labels)')
    p.add_argument('--predict', metavar='NAME', help='another predict, over the first --n examples of the '
                   'evaluation data, a row each: for instance reconstruct or interpolate')
    p.add_argument('--labels', help='class numbers, for instance 3 or 0,1,2 (default: all classes in turn)')
    p.add_argument('--prompt', metavar='TEXT', help='what a model of text shall draw')
    p.add_argument('--negative-prompt', metavar='TEXT', help='what guidance leads away from (default: the empty text)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--steps', type=int, help='sampling steps')
    p.add_argument('--solver', help='for instance ddim, ddpm, heun or dpmpp_2m (gen-jax list solvers)')
    p.add_argument('--spacing', help='of the steps, for instance trailing, karras or log_snr (gen-jax list spacings)')
    p.add_argument('--guidance', help='guidance scale, or none')
    p.add_argument('--eta', type=float, help='stochasticity of ddim, 0 to 1')
    p.add_argument('--set', metavar='KEY=VALUE', action='append', default=[], help='any other setting of the predict, '
                   'for instance rho=5 or corrector=langevin; repeatable')
    p.add_argument('--step', type=int, help='checkpoint step (default: the newest)')
    p.add_argument('--ema', help='name of the average to use; "" for the raw parameters')
    p.add_argument('--batch-size', type=int, default=100)
    p.add_argument('--columns', type=int, help='of the grid')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p)
    if not args.workdir:
        return fail('gen-jax sample: needs --workdir DIR, a run made by gen-jax train')
    labels, settings = 'balanced', {}
    try:
        if args.labels is not None:
            labels = [int(v) for v in args.labels.split(',')]
        if args.guidance is not None:
            settings['guidance_scale'] = None if args.guidance.lower() == 'none' else float(args.guidance)
    except ValueError:
        return fail(f'gen-jax sample: --labels {args.labels} --guidance {args.guidance}: numbers separated by commas, '
                    'and a number or none')
    for item in args.set:
        key, equals, value = item.partition('=')
        if not equals or not key.isidentifier():
            return fail(f'gen-jax sample: --set {item}: expected KEY=VALUE')
        settings[key] = literal(value)
    if any(v is not None and v < 1 for v in (args.n, args.batch_size, args.columns)):
        return fail(f'gen-jax sample: --n {args.n} --batch-size {args.batch_size} --columns {args.columns}: at least 1')
    named = {k: getattr(args, k) for k in ('steps', 'eta', 'solver', 'spacing', 'prompt', 'negative_prompt')}
    settings.update({k: v for k, v in named.items() if v is not None})
    prepare_jax()
    from gen_jax.build import load
    from gen_jax.engine.files import save_npz
    from gen_jax.engine.images import grid, save_png
    loaded = load(args.workdir, step=args.step, ema=args.ema, overrides=overrides)
    columns = args.columns
    if args.predict and args.predict != loaded.config.sample.predict:
        if args.labels is not None:
            return fail(f'gen-jax sample: --predict {args.predict} starts from the evaluation data; leave --labels out')
        out = loaded.from_data(args.predict, args.n or 10, args.seed, **settings)
        if 'image' not in out:
            path = Path(args.out or Path(args.workdir) / args.predict)
            save_npz(path.with_name(path.name + '.npz'), out)
            for key, values in out.items():
                print(f'{key:24}mean {values.mean():.5g} of shape {list(values.shape)}')
            print(f'step {loaded.step}: {path}.npz')
            return 0
        columns = out['image'].shape[1]
        pictures = out['image'].reshape(-1, *out['image'].shape[2:])
    else:
        out = loaded.sample(args.n, labels, args.seed, args.batch_size, **settings)
        pictures = out['image']
    path = Path(args.out) if args.out else Path(args.workdir) / 'generated'
    picture = grid(pictures, columns=columns or min(10, len(pictures)), scale=None)
    save_npz(path.with_name(path.name + '.npz'), out)
    save_png(path.with_name(path.name + '.png'), picture)
    print(f'{len(pictures)} pictures of step {loaded.step}: {path}.png and {path}.npz')
    return 0
