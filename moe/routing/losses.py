"""The auxiliary losses of routers, unweighted, each for one layer and over real tokens only.

Load balancing losses are computed per routing group, where capacity is counted, or over more or fewer tokens if asked,
and averaged in proportion to real tokens. Layers are never pooled: two collapsed layers with different favourites would
look balanced. `docs/losses.md` converts other projects' weights.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from moe.routing.solvers.highest import highest

# What counts as 0 in a divisor: its inverse leaves room in float32 for what slopes are multiplied by.
_UNDERFLOW = 1e-30


def balance_loss(probs: jax.Array, choices: jax.Array, mask: jax.Array, *, together: int | None = None) -> jax.Array:
  """E * sum_e f_e p_e: Fedus et al. 2021 (Switch), eq. 4, with f divided by k; 1 when balanced, for any k.

  It is E / k when collapsed onto k experts. Choices count before capacity drops any. No gradient flows through f.

  Args:
    probs: float32 `[G, n, E]`, summing to 1 over the experts, such as the softmax of the router's logits.
    choices: int32 `[G, n, k]`, the experts each token wants.
    mask: bool `[G, n]`, False for padding.
    together: tokens that are balanced with each other, a divisor of G * n; None for n.
  """
  if together is not None:
    probs, choices, mask = (x.reshape(-1, together, *x.shape[2:]) for x in (probs, choices, mask))
  num_experts, k = probs.shape[-1], choices.shape[-1]
  real = mask.astype(jnp.float32)
  wanted = (choices[..., None] == jnp.arange(num_experts)).sum(-2, dtype=jnp.float32)  # [G, n, E]
  fraction = _group_mean(wanted, real) / k
  return num_experts * _over_groups((jax.lax.stop_gradient(fraction) * _group_mean(probs, real)).sum(-1), real)


def importance_loss(probs: jax.Array, mask: jax.Array) -> jax.Array:
  """CV^2 over experts of the total gate each receives: Shazeer et al. 2017, section 4, eq. 7; 0 when equal.

  Args:
    probs: float32 `[G, n, E]`, the gates: 0 for experts not chosen in Shazeer et al., the softmax over all experts
      without noise in V-MoE.
    mask: bool `[G, n]`.
  """
  real = mask.astype(jnp.float32)
  return _over_groups(_squared_variation(_group_mean(probs, real)), real)


def load_loss(
  logits: jax.Array,
  noisy_logits: jax.Array,
  k: int,
  std: jax.Array | float,
  mask: jax.Array,
  bar: Literal["others", "all"] = "others",
) -> jax.Array:
  """CV^2 over experts of the smooth load: Shazeer et al. 2017, appendix A, eq. 8-11.

  An expert's load is the sum over tokens of the probability that it would be among the token's k highest if only its
  own noise were redrawn.

  Args:
    logits: float32 `[G, n, E]`, without noise.
    noisy_logits: float32 `[G, n, E]`, those whose k highest were chosen; E > k.
    k: experts per token.
    std: standard deviation of the noise, > 0: a number, or `[G, n, E]` per token and expert.
    bar: what an expert must beat: the k-th highest of the "others", or, as V-MoE's code has it, of "all" with itself.
    mask: bool `[G, n]`.
  """
  best = highest(noisy_logits, k + 1)[0]
  kth, next_one = best[..., k - 1 : k], best[..., k : k + 1]
  # The k-th highest of the other experts: the (k + 1)-th of all for an expert that is itself among the k.
  to_beat = jnp.where(noisy_logits >= kth, next_one, kth) if bar == "others" else kth
  chance = jax.scipy.stats.norm.cdf((logits - to_beat) / std)
  real = mask.astype(jnp.float32)
  return _over_groups(_squared_variation(_group_mean(chance, real)), real)


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Scalar, mean over real tokens of `values`, `[G, n]` or one for all; 0 if no token is real."""
  real = mask.astype(jnp.float32)
  return (values * real).sum() / jnp.maximum(real.sum(), 1.0)


def router_z_loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over real tokens of logsumexp(logits)^2: Zoph et al. 2022 (ST-MoE), eq. 5; (ln E)^2 for zero logits.

  Args:
    logits: float32 `[G, n, E]`.
    mask: bool `[G, n]`.
  """
  return masked_mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)), mask)


def negative_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over real tokens of sum_e p_e ln p_e, p = softmax(logits); -ln E if uniform, 0 if one-hot.

  Of logits, since the slope of p ln p is infinite where p has underflowed to 0.

  Args:
    logits: float32 `[G, n, E]`, finite.
    mask: bool `[G, n]`.
  """
  return masked_mean((jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1), mask)


def normalized(values: jax.Array) -> jax.Array:
  """`[..., m]`, at least 0, each row divided by its sum; 0 if the complete row has underflowed."""
  values = scaled(values, values.max(-1, keepdims=True))
  total = values.sum(-1, keepdims=True)
  return values / jnp.where(total > 0, total, 1.0)


def scaled(values: jax.Array, largest: jax.Array) -> jax.Array:
  """Values, at least 0, divided by the largest of those that share a sum; 0 if that has underflowed.

  Their sum is at least 1 or 0, and safe to divide by. The slope of x / sum has the square of the sum, which underflows
  long before the sum does.
  """
  largest = jax.lax.stop_gradient(largest)
  there = largest > _UNDERFLOW
  return jnp.where(there, values / jnp.where(there, largest, 1.0), 0.0)


def _group_mean(values: jax.Array, real: jax.Array) -> jax.Array:
  """`[G, E]`, mean over each group's real tokens of `values` `[G, n, E]`; 0 in a group of padding."""
  return jnp.einsum("gne,gn->ge", values, real) / jnp.maximum(real.sum(-1), 1.0)[:, None]


def _over_groups(values: jax.Array, real: jax.Array) -> jax.Array:
  """Scalar, mean of `values` `[G]` in proportion to the groups' real tokens."""
  return (values * real.sum(-1)).sum() / jnp.maximum(real.sum(), 1.0)


def _squared_variation(values: jax.Array) -> jax.Array:
  """`[G]`, variance over squared mean of `values` `[G, E]`, at least 0; 0 where all are 0."""
  return (values.shape[-1] * normalized(values)).var(-1)
