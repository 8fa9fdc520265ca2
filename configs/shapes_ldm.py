"""Text to image by latent diffusion (Rombach et al. 2022) on the procedural `shapes` scenes, every part trained here.

    gen-jax train --config shapes_vae --workdir runs/shapes_vae
    gen-jax cache --workdir runs/shapes_vae --out caches/shapes --config.data.options.size=100_000 \\
        --config.data.options.max_objects=2 "--config.data.options.fields=('image', 'captions')"
    gen-jax train --config shapes_clip:objects=2 --workdir runs/shapes_text
    gen-jax embed-text --workdir runs/shapes_text --config shapes_ldm --out caches/text
    gen-jax train --config shapes_ldm --workdir runs/shapes_ldm
    gen-jax evaluate --workdir runs/shapes_ldm
    gen-jax sample --workdir runs/shapes_ldm --prompt "a small red circle left of a large blue star"

(experiments/latent_diffusion.sh does all of it.) The autoencoder makes 8x8x4 latents of 32x32 pictures, CLIP's text
tower reads the captions, and a conditional UNet denoises the latents; the first two are frozen, and what they make of
the data is on the disk. Rectified flow with logit-normal times (Esser et al. 2024), and 10 % of the captions empty
(Ho & Salimans 2022). After 2,000 steps it drew 67 of 100 captions of one object right at guidance 3; with a cosine
table, v-prediction and uniform times 27.

Expected, on 2 idle CPU cores in about 45 minutes, at guidance 4: `one` at least 0.90. Ours, one seed: one 0.936, two
0.232, heldout 0.946 (docs/latent_diffusion.md has the curve over guidance scale).

`one` is the share of 500 captions of one object ('a small red circle') in whose picture the oracle reads just that:
count, shape, colour and size; `two` are captions of two objects and their relation; `heldout` names one of the four
shape-colour pairs that no part has ever seen.
"""

from gen_jax.config import base_config, load_config, parse_arg

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of guidance; what `gen-jax evaluate` goes through."""


def get_config(arg=''):
    """Arguments: vae and clip (runs), latents and text (folders of caches); debug."""
    arg = parse_arg(arg, vae='runs/shapes_vae', clip='runs/shapes_text', latents='caches/shapes', text='caches/text',
                    debug=False)
    c, clip = base_config(), load_config('shapes_clip:objects=2')
    c.data.source = f'cached:{arg.latents}'
    c.data.eval_split = 'train'
    c.data.options = {'fields': ('mean', 'log_var', 'captions')}
    c.data.batch_size = 64
    text = {'name': 'text_embeddings', 'folder': arg.text, 'negative': ''}
    c.data.transforms = ({**text, 'key': 'captions'},)
    c.data.eval_transforms = ({**text, 'key': 'caption', 'keep': True},)
    c.frozen = {'first_stage': {'run': arg.vae}, 'text_encoder': {'run': arg.clip}}
    c.system = {
        'name': 'systems.diffusion',
        'process': {'name': 'diffusion.flow'},
        'parameterisation': {'name': 'diffusion.parameterisation.flow'},
        'times': {'name': 'diffusion.times.logit_normal'},
        'network': {'name': 'models.unet_condition_shapes'},
        'first_stage': {'name': 'models.autoencoder_kl_shapes'},
        'text_encoder': clip.system.network.to_dict(),
        'tokenizer': clip.data.transforms[0]['tokenizer'],
        'image_shape': (32, 32, 3),
        'cond': {'encoder_hidden_states': 'encoder_hidden_states'},
        'null': {'encoder_hidden_states': 'negative_encoder_hidden_states'},
        'cond_dropout': 0.1,
        'clip': None,
        'solver': 'heun',
        'steps': 10,
    }
    c.optim.lr = 1e-3
    c.optim.schedule = 'cosine'
    c.optim.warmup_steps = 200
    c.optim.b2 = 0.99
    c.optim.clip_norm = 1.0
    c.train.steps = 5000
    c.train.ema = {'slow': {'decay': 0.998, 'warmup': True}}
    c.log.every_steps = 100
    c.checkpoint.every_steps = 500
    c.sample.n = 20
    c.sample.every_steps = 1000
    c.sample.settings = {'prompt': 'a large red star', 'guidance_scale': 3.0}
    ask = {'predict': 'generate', 'source': 'shapes', 'split': 'test', 'batch_size': 250, 'n': 500, 'every_steps': 0}
    kinds = {'one': {'max_objects': 1}, 'two': {'min_objects': 2, 'max_objects': 2},
             'heldout': {'max_objects': 1}}

    def entry(kind, scale):
        return {**ask, 'split': 'heldout' if kind == 'heldout' else 'test', 'settings': {'guidance_scale': scale},
                'data_options': {**kinds[kind], 'fields': ('caption',)},
                'metrics': ({'name': 'scenes', 'caption': 'caption'},)}

    c.evaluate = {f'{kind}_{scale:g}'.replace('.', '_'): entry(kind, scale) for kind in kinds for scale in SCALES}
    c.evaluate['progress'] = {**entry('one', 3.0), 'n': 100, 'batch_size': 100, 'every_steps': 1000}
    if arg.debug:
        c.system.network = {'name': 'models.unet_condition_tiny', 'cross_attention_dim': 64}
        c.system.steps = 2
        c.sample.n = 4
        c.data.batch_size = 8
        c.train.steps = 4
        c.optim.warmup_steps = 1
        for spec in c.evaluate.values():
            spec.update({'n': 4, 'batch_size': 4})
        c.evaluate.progress.every_steps = 2
    return c
