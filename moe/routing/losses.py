"""The auxiliary losses of routers, unweighted, each for one layer and over real tokens only.

Load balancing losses are computed per routing group, where capacity is counted, and averaged over groups in proportion
to their real tokens. Layers are never pooled: two collapsed layers with different favourites would look balanced.
"""

import jax
import jax.numpy as jnp

from moe.routing.solvers.highest import highest


def balance_loss(probs: jax.Array, choices: jax.Array, mask: jax.Array) -> jax.Array:
  """E * sum_e f_e p_e: Fedus et al. 2021 (Switch), eq. 4, with f divided by k; 1 when balanced, for any k.

  It is E / k when collapsed onto k experts. GShard counts first choices only; here all k choices count, before capacity
  drops any. No gradient flows through f.

  Args:
    probs: float32 `[G, n, E]`, summing to 1 over the experts, such as the softmax of the router's logits.
    choices: int32 `[G, n, k]`, the experts each token wants.
    mask: bool `[G, n]`, False for padding.
  """
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


def load_loss(logits: jax.Array, noisy_logits: jax.Array, k: int, std: jax.Array | float, mask: jax.Array) -> jax.Array:
  """CV^2 over experts of the smooth load: Shazeer et al. 2017, appendix A, eq. 8-11.

  An expert's load is the sum over tokens of the probability that it would be among the token's k highest if only its
  own noise were redrawn.

  Args:
    logits: float32 `[G, n, E]`, without noise.
    noisy_logits: float32 `[G, n, E]`, those whose k highest were chosen; E > k.
    k: experts per token.
    std: standard deviation of the noise, > 0: a number, or `[G, n, E]` per token and expert.
    mask: bool `[G, n]`.
  """
  best = highest(noisy_logits, k + 1)[0]
  kth, next_one = best[..., k - 1 : k], best[..., k : k + 1]
  # The k-th highest of the other experts: the (k + 1)-th of all for an expert that is itself among the k.
  to_beat = jnp.where(noisy_logits >= kth, next_one, kth)
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


def negative_entropy(probs: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over real tokens of sum_e p_e ln p_e; -ln E for uniform probabilities, 0 for one-hot ones.

  Args:
    probs: float32 `[G, n, E]`, softmax of the router's logits.
    mask: bool `[G, n]`.
  """
  return -masked_mean(jax.scipy.special.entr(probs).sum(-1), mask)


def _group_mean(values: jax.Array, real: jax.Array) -> jax.Array:
  """`[G, E]`, mean over each group's real tokens of `values` `[G, n, E]`; 0 in a group of padding."""
  return jnp.einsum("gne,gn->ge", values, real) / jnp.maximum(real.sum(-1), 1.0)[:, None]


def _over_groups(values: jax.Array, real: jax.Array) -> jax.Array:
  """Scalar, mean of `values` `[G]` in proportion to the groups' real tokens."""
  return (values * real.sum(-1)).sum() / jnp.maximum(real.sum(), 1.0)


def _squared_variation(values: jax.Array) -> jax.Array:
  """`[G]`, variance over squared mean of `values` `[G, E]`; 0 where all are 0."""
  mean = values.mean(-1)
  return values.var(-1) / jnp.where(mean == 0, 1.0, jnp.square(mean))
