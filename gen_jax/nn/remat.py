"""Rematerialisation by name: what the backward pass computes again instead of keeping it (Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174)."""

import flax.linen as nn
import jax

__all__ = ['POLICIES', 'check_remat', 'recomputed']


POLICIES = {
    'full': None,
    'nothing_saveable': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_saveable,
    'dots_no_batch': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'everything_saveable': jax.checkpoint_policies.everything_saveable,
}
"""What is kept of a block besides its inputs, by name: nothing; nothing, too; the outputs of matrix products and
convolutions, so that norms and activations alone are recomputed; those of matrix products without batch dimensions
(of dense layers, not the scores of attention); all, for comparison."""


def check_remat(policy: str) -> None:
    """Raises ValueError for an unknown policy; '' is none."""
    if policy and policy not in POLICIES:
        raise ValueError(f"unknown remat policy {policy!r}: choose from {', '.join(POLICIES)}, or '' for none")


def recomputed(block: nn.Module, policy: str):
    """The block, recomputed in the backward pass: called as the block is; keyword arguments are static.

    Its parameters keep their names, and dropout draws the same masks again.

    Args:
        policy: one of `POLICIES`; '' is the block itself.
    """
    check_remat(policy)
    if not policy:
        return block

    def call(*args, **static):
        return nn.remat(lambda module, *a: module(*a, **static), policy=POLICIES[policy])(block, *args)

    return call
