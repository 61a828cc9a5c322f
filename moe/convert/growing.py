"""More experts (Lifelong-MoE, Chen et al. 2023, arXiv 2305.12281): a model grows, and computes at first what it did.

New experts and their part of the router begin as copies of the old ones, in turn, so that they start where these are.
So that no output changes, the copies have no say at first, by one of two ways (`RouterConfig.growth`):

- "unchosen" (`loss_free`, `quantile_balanced` with sigmoid scores, `deepseek_v3` too if all its groups are chosen):
  their bias is so low that no token chooses them; training balances the loads, and lets them in.
- "silent" (`relu`, `noisy_rectifier`, `stochastic_times_smooth`, `threshold` with sigmoid gates): the last matrix of a
  new expert is 0, and learns from the first step on.

A softmax over experts has no such start: new columns take a share of every old gate, unless their logits are so low
that they get no gradient either. Slots are counted per expert, so more experts leave fewer to each. Routers with either
are refused.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.convert.layers import Tree
from moe.models import ModelConfig
from moe.training.optimization.parts import by_path, expert_axes_of, path_of

# Scores are between 0 and 1: with a bias lower by 1 than any other, an expert ranks behind all others.
_HELD_BACK = 1.0


def grow_experts(variables: Tree, old: ModelConfig, new: ModelConfig) -> Tree:
  """Parameters, or routers' states, with the old experts first and then the new ones.

  Args:
    variables: of `old`.
    old: its routers that grow have a `growth`.
    new: differs from it in having more experts in some stacks.
  """
  axes = expert_axes_of(old, by_path(variables))
  experts = {name: stack.moe for name, stack in new.stacks.items() if stack.moe is not None}

  def grown(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    path = path_of(keys)
    if path not in axes:
      return leaf
    axis, moe = axes[path], experts[path.split("/")[0]]
    copies = jnp.take(leaf, np.arange(moe.num_experts - leaf.shape[axis]) % leaf.shape[axis], axis=axis)
    if moe.router.growth == "silent" and path.endswith("/down"):  # the matrix, and its bias
      copies = jnp.zeros_like(copies)
    if moe.router.growth == "unchosen" and path.endswith("/router/bias"):
      copies = jnp.broadcast_to(leaf.min(axis, keepdims=True) - _HELD_BACK, copies.shape)
    return jnp.concatenate([leaf, copies], axis)

  return jax.tree.map_with_path(grown, variables)
