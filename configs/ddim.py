"""DDIM (Song et al. 2021, "Denoising Diffusion Implicit Models"): the models of DDPM, sampled in 10 to 100 steps.

    gen-jax train --config ddim --workdir runs/ddim                     # the training is DDPM's, to the letter
    gen-jax sample --workdir runs/ddim --steps 20 --eta 0.5

Published on CIFAR-10, eta = 0: FID 13.36 in 10 steps, 6.84 in 20, 4.67 in 50, 4.16 in 100 (Table 1). A run of
`--config ddpm` can be sampled the same way: `--solver ddim --spacing leading --steps 50`. Not trained to the end by us.
"""

from gen_jax.config import load_config, parse_arg


def get_config(arg=''):
    """Arguments: dataset 'cifar10' | 'celebahq256'; eta (0 to 1); debug."""
    arg = parse_arg(arg, dataset=('cifar10', 'celebahq256'), eta=0.0, debug=False)
    c = load_config(f'ddpm:dataset={arg.dataset},debug={arg.debug}')
    c.system = {**c.system, 'solver': 'ddim', 'spacing': 'leading', 'settings': {'eta': arg.eta},
                'steps': 5 if arg.debug else 50}
    return c
