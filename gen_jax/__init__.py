"""gen_jax: generative vision research in JAX.

Every family (diffusion, VAEs, GANs, CLIP) as pure-functional Flax Linen modules, trained through one loop, sampled
through one scan, checkpointed through one path.
"""


def load(workdir, *args, **kwargs):
    """A trained run as plain functions and variables; see `gen_jax.build.load`."""
    from gen_jax.build import load as load_run
    return load_run(workdir, *args, **kwargs)
