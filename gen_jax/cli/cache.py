"""gen-jax cache: what a trained run makes of a data split, written to disk."""

import json

from gen_jax.cli.options import fail, parse, parser, prepare_jax, show_help

TEXT = """Encode a data split once with a trained run, so that later trainings read the result:

  gen-jax cache --workdir runs/shapes_vae --split train --out caches/shapes
  gen-jax train --config ... --config.data.source=cached:caches/shapes

Examples keep the other entries of the data (labels, captions ...); pictures are left out
unless --pictures is given. The same command again finds its work done."""


def run(argv) -> int:
    """Runs the command."""
    p = parser('cache', TEXT)
    p.add_argument('--workdir', metavar='DIR', help='a run made by gen-jax train')
    p.add_argument('--split', metavar='S', help='which split; by default data.train_split')
    p.add_argument('--out', metavar='DIR', help='where the folder of the split is put')
    p.add_argument('--predict', default='encode', help='what to compute (default: encode)')
    p.add_argument('--outputs', metavar='A,B', default='mean,log_var', help='which outputs to keep (default: '
                   'mean,log_var)')
    p.add_argument('--n', type=int, help='the first N examples (default: all)')
    p.add_argument('--batch-size', type=int, default=200, metavar='B')
    p.add_argument('--pictures', action='store_true', help='keep the entries image*, too')
    p.add_argument('--step', type=int, help='checkpoint step (default: the newest)')
    p.add_argument('--ema', help='name of the average to use; "" for the raw parameters')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p)
    if not (args.workdir and args.out):
        return fail('gen-jax cache: needs --workdir DIR, a run made by gen-jax train, and --out DIR')
    if args.batch_size < 1 or args.n is not None and args.n < 1:
        return fail('gen-jax cache: --n and --batch-size must be at least 1')
    prepare_jax()
    from gen_jax.build import load
    loaded = load(args.workdir, step=args.step, ema=args.ema, overrides=overrides)
    split = args.split or loaded.config.data.train_split
    manifest = cache(loaded, split, args.out, args.predict, tuple(args.outputs.split(',')), args.n, args.batch_size,
                     args.pictures)
    for key, (dtype, shape) in manifest['fields'].items():
        spread = manifest['statistics'].get(key)
        print(f'  {key:24}{dtype} {shape}' + (f', std {spread["std"]:.4g}' if spread else ''))
    print(f'{manifest["length"]} examples in {args.out}/{split}')
    return 0


def cache(loaded, split, out, predict='encode', outputs=('mean', 'log_var'), n=None, batch_size=200, pictures=False):
    """Writes OUT/SPLIT (`gen_jax.data.cached`) and returns its manifest; `loaded` is what `gen_jax.build.load` gave."""
    from gen_jax import build, config
    from gen_jax.data.cached import write_cache
    from gen_jax.data.pipeline import eval_batches, fingerprint
    from gen_jax.engine.fingerprint import fingerprints
    source, transforms = build.open_split(loaded.config, split)
    length = min(n or len(source), len(source))
    data = fingerprint(source, transforms, seed=0, batch_size=1)
    made_by = {'weights': fingerprints(loaded.variables._asdict()), 'predict': predict, 'outputs': outputs,
               'system': json.loads(config.to_json(loaded.config.system)), 'pictures': pictures,
               'data': {k: data[k] for k in ('source', 'transforms')}}

    def batches():
        given = eval_batches(source, batch_size=min(batch_size, length), transforms=transforms, limit=length)
        options = loaded.predictor.options(predict, {})
        for made, batch in loaded.predictor.stream(predict, loaded.variables, seed=0, batches=given, options=options):
            if missing := [k for k in outputs if k not in made]:
                raise ValueError(f'predict {predict!r} has no output {missing[0]!r}: choose from '
                                 f'{", ".join(sorted(made))}')
            kept = {k: v for k, v in batch.items() if k != 'valid' and (pictures or not k.startswith('image'))}
            yield {**kept, **{k: made[k] for k in outputs}}

    info = {k: source.info.get(k) for k in ('num_classes', 'label_names', 'image_shape', 'class_captions')}
    return write_cache(out, split, batches(), length=length, made_by=made_by, info=info)
