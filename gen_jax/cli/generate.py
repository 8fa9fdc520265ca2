"""gen-jax generate: pictures from prompts, with a published pipeline."""

import sys
from pathlib import Path

from gen_jax.cli.options import fail, literal, parse, parser, prepare_jax, show_help


def run(argv) -> int:
    """Runs the command."""
    p = parser('generate', 'Text to image, image to image and inpainting with Stable Diffusion 1.x, 2.x or XL weights: '
               'OUT-0.png, OUT-1.png ...\nPicture k depends on the prompt and on --seed + k only.')
    p.add_argument('--pipeline', metavar='PATH_OR_ID', help='a folder with model_index.json, or owner/name on the hub')
    p.add_argument('--prompt', action='append', default=[], help='what to draw; repeatable')
    p.add_argument('--negative', metavar='PROMPT', help='what to avoid')
    p.add_argument('--image', metavar='FILE', help='a picture to start from (image to image)')
    p.add_argument('--mask', metavar='FILE', help='white where --image is to be painted anew (inpainting)')
    p.add_argument('--strength', type=float, help='how much of --image is given up, above 0 to 1')
    p.add_argument('--out', metavar='PATH', default='generated', help='of the pictures, without suffix')
    p.add_argument('--n', type=int, default=1, help='pictures per prompt')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--steps', type=int, default=50)
    p.add_argument('--guidance', default='', help='guidance scale (default: 7.5, XL 5), or none')
    p.add_argument('--height', type=int)
    p.add_argument('--width', type=int)
    p.add_argument('--scheduler', help="a scheduler of diffusers in place of the pipeline's, such as "
                   'EulerDiscreteScheduler')
    p.add_argument('--solver', help='a solver of ours instead, such as dpmpp_2m (gen-jax list solvers)')
    p.add_argument('--spacing', help='of its steps, such as karras')
    p.add_argument('--dtype', help='float32, bfloat16 or float16')
    p.add_argument('--variant', help='of the weights, such as fp16')
    p.add_argument('--revision', help='on the hub')
    p.add_argument('--set', metavar='KEY=VALUE', action='append', default=[], help='any other setting: eta, clip_skip, '
                   'guidance_rescale, slicing, tiling; repeatable')
    args, rest = parse(p, argv)
    if args.help:
        return show_help(p)
    if rest:
        return fail(f'gen-jax generate: unknown argument {rest[0]}')
    if not args.pipeline or not args.prompt:
        return fail('gen-jax generate: needs --pipeline PATH_OR_ID and --prompt TEXT')
    if args.mask and not args.image:
        return fail('gen-jax generate: --mask needs --image, the picture that it belongs to')
    settings = {k: v for k in ('strength', 'height', 'width', 'scheduler', 'solver', 'spacing')
                if (v := getattr(args, k)) is not None}
    for item in args.set:
        key, equals, value = item.partition('=')
        if not equals or not key.isidentifier():
            return fail(f'gen-jax generate: --set {item}: expected KEY=VALUE')
        settings[key] = literal(value)
    if args.guidance:
        guidance = None if args.guidance.lower() == 'none' else literal(args.guidance)
        settings['guidance_scale'] = guidance
    given = [k for k in ('height', 'width') if k in settings] if args.image else [k for k in ('strength',)
                                                                                if k in settings]
    if given:
        return fail(f'gen-jax generate: --{given[0]} ' + ('is that of --image; leave it out' if args.image else
                                                          'is of --image, which is not given'))
    count = len(args.prompt) * max(args.n, 1)
    prepare_jax(batch_size=count)
    import jax
    import numpy as np

    from gen_jax.engine.images import save_png
    from gen_jax.engine.sharding import make_mesh, replicated
    from gen_jax.pipelines import load_pipeline
    from gen_jax.pipelines.pictures import NOTHING, read_picture
    files = [read_picture(args.image)] if args.image else []  # before gigabytes of weights
    files += [read_picture(args.mask, NOTHING)] if args.mask else []
    spread = count % jax.device_count() == 0  # else the first device makes them all
    where = replicated(make_mesh({'data': -1})) if spread else jax.devices()[0]
    pipeline = load_pipeline(args.pipeline, args.dtype, args.variant, revision=args.revision,
                             place=lambda leaf: jax.device_put(leaf, where))
    size = sum(leaf.size for leaf in jax.tree.leaves(pipeline.variables))
    print(f'{args.pipeline}: {size:,} parameters; {count} pictures in {args.steps} steps on '
          f'{"/".join(sorted({d.device_kind for d in jax.devices()}))}, all in one call', file=sys.stderr, flush=True)
    use = ('inpaint' if args.mask else 'image_to_image') if args.image else 'text_to_image'
    pictures = getattr(pipeline, use)(
        pipeline.variables, args.prompt, *files, negative_prompt=args.negative, steps=args.steps, seed=args.seed,
        images_per_prompt=args.n, **settings)
    for k, picture in enumerate(np.asarray(pictures)):
        save_png(Path(f'{args.out}-{k}.png'), picture)
    print(f'{count} pictures: {args.out}-0.png to {args.out}-{count - 1}.png')
    return 0
