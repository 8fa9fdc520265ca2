"""gen-jax convert: published weights to a checkpoint of ours, and a trained run to a folder that others load."""

from gen_jax.cli.options import fail, parse, parser, prepare_jax

TEXT = """Converts weights; which way follows from SOURCE and --to.

SOURCE  a folder in the layout of the Hugging Face hub (a model, or a pipeline of several), a hub id owner/name,
        Stable Diffusion 1.x in one .safetensors file, an ADM network's .safetensors (with --model), or a
        folder of gen-jax train
--to    jax:     OUT is a checkpoint, which --config.train.init_from=OUT starts a training from
        torch:   OUT is a folder that diffusers or transformers loads; several parts are its sub-folders
        single:  OUT.safetensors is Stable Diffusion 1.x (or an ADM network) in one file

  gen-jax convert owner/name runs/sd15 --to jax --dry-run
  gen-jax convert runs/digits exported/digits --to torch

exit codes: 0; 1 if a dry run finds keys that do not fit; 2 bad input. Pickles (.bin, .pt, .ckpt, .pkl) are refused:
docs/weights.md says how to convert them."""


def run(argv) -> int:
    """Runs the command."""
    p = parser('convert', TEXT)
    p.add_argument('source', nargs='?', metavar='SOURCE')
    p.add_argument('out', nargs='?', metavar='OUT')
    p.add_argument('--to', choices=('jax', 'torch', 'single'))
    p.add_argument('--dry-run', action='store_true', help='only print which keys fit; reads shapes, writes nothing')
    p.add_argument('--part', metavar='NAME', help='only this part: unet, vae ...; and what a single model is called, '
                   'for init_from')
    p.add_argument('--dtype', choices=('float32', 'float16', 'bfloat16'), help='of the weights written')
    p.add_argument('--variant', help='of published weights: fp16 reads and writes *.fp16.safetensors')
    p.add_argument('--max-shard-size', default='10GB', help='larger weights are split (default: 10GB)')
    p.add_argument('--model', metavar='FACTORY', help='of an ADM file: adm_imagenet256 ... (gen-jax list models)')
    p.add_argument('--ema', help="of a run: an average's name; '' is the raw parameters (default: the config's)")
    p.add_argument('--step', type=int, help='of a run: which checkpoint (default: the newest)')
    p.add_argument('--revision', help='of a hub id: branch, tag or commit')
    args, overrides = parse(p, argv)
    if args.help:
        print(p.format_help())
        return 0
    if not args.source or not args.to or overrides or not (args.out or args.dry_run):
        return fail('gen-jax convert: needs SOURCE OUT --to jax|torch|single; for instance '
                    'gen-jax convert runs/digits exported/digits --to torch')
    prepare_jax(1)
    from gen_jax.cli.convert_parts import from_published, from_run, is_run, write
    parts = from_run(args) if is_run(args.source) else from_published(args)
    if args.part and list(parts) == ['model']:
        parts = {args.part: parts['model']}
    elif args.part:
        if args.part not in parts:
            raise ValueError(f'{args.source} has no part {args.part!r}; it has {", ".join(parts)}')
        parts = {args.part: parts[args.part]}
    if args.dry_run:
        from gen_jax.interop.table import lines
        for name, part in parts.items():
            print('\n'.join(lines(name, part)))
        return int(not all(part.match().fits for part in parts.values()))
    for path in write(parts, args):
        print(path)
    return 0
