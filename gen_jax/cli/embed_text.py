"""gen-jax embed-text: the captions of some data through a trained CLIP's text tower, into a cache on disk."""

import time

from gen_jax.cli.options import fail, parse, parser, prepare_jax, show_help


def run(argv) -> int:
    """Runs the command."""
    p = parser('embed-text', 'Embed captions with the text tower of a trained CLIP, for a model that is conditioned on '
               'text:\nOUT/KEY holds a row for each distinct caption and for the empty one; KEY depends on weights and '
               "tokenizer.\nRead it with the transform {'name': 'text_embeddings', 'folder': 'OUT/KEY'}.")
    p.add_argument('--workdir', metavar='DIR', help='a run of a CLIP made by gen-jax train')
    p.add_argument('--out', metavar='DIR', help='default: WORKDIR/text')
    p.add_argument('--config', metavar='NAME', help="whose captions (default: the run's own config)")
    p.add_argument('--splits', help='of the data, separated by commas (default: all that the config names)')
    p.add_argument('--captions', metavar='PATH', help='a text file instead, one caption a line')
    p.add_argument('--step', type=int, help='checkpoint step (default: the newest)')
    p.add_argument('--ema', help='name of the average to use; "" for the raw parameters')
    p.add_argument('--dtype', default='float16', choices=('float16', 'float32'))
    p.add_argument('--batch-size', type=int, default=256)
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if not args.workdir:
        return fail('gen-jax embed-text: needs --workdir DIR, the run of a CLIP made by gen-jax train')
    if args.batch_size < 1:
        return fail(f'gen-jax embed-text: --batch-size {args.batch_size}: at least 1')
    prepare_jax()
    from pathlib import Path

    from gen_jax.build import load
    from gen_jax.cli.embed_text_run import captions_of_config, embed_text
    from gen_jax.config import apply_overrides, load_config
    from gen_jax.data.text_cache import open_text_cache
    loaded = load(args.workdir, step=args.step, ema=args.ema)
    config = apply_overrides(load_config(args.config) if args.config else loaded.config, overrides)
    began = time.perf_counter()
    if args.captions:
        texts = Path(args.captions).read_text(encoding='utf-8').splitlines()
    else:
        texts = captions_of_config(config, args.splits.split(',') if args.splits else None)
    out = Path(args.out) if args.out else Path(args.workdir) / 'text'
    folder = embed_text(loaded, texts, out, batch_size=args.batch_size, dtype=args.dtype)
    cache = open_text_cache(folder)
    print(f'{len(cache.rows)} captions, states {list(cache.states.shape)} {cache.states.dtype}, in '
          f'{time.perf_counter() - began:.1f} s: {folder}')
    return 0
