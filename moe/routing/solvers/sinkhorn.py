"""Sinkhorn's plan: the softmax over experts, rescaled until every expert gets an equal share.

S-BASE (Clark et al. 2022, "Unified scaling laws for routed language models", arXiv 2202.01169, section 3.1) routes each
token to the expert of its largest share, in place of the exact assignment of BASE. The plan solves entropic optimal
transport with uniform marginals. Only the soft plan is balanced; the choice of the largest shares is nearly so.
"""

import math

import jax
import jax.numpy as jnp


def sinkhorn_plan(logits: jax.Array, mask: jax.Array, tolerance: float = 1e-4, max_iterations: int = 100) -> jax.Array:
  """float32 `[n, E]`: the plan of m real tokens; each row sums to 1 / m, each column to nearly 1 / E, padding is 0.

  One iteration scales the columns to their sums and then the rows. It stops when no column is off by more than
  `tolerance` of its sum. Works in the log domain, so that logits of any size neither over- nor underflow. Not
  reverse-differentiable: the choice has no gradient, and the gate is another quantity.

  Args:
    logits: `[n, E]`, finite; a constant added to a token's or to an expert's logits changes nothing.
    mask: bool `[n]`, False for padding.
    tolerance: largest relative error of a column sum, at least 0.
    max_iterations: bound on the iterations; 0 gives the softmax.
  """
  num_experts = logits.shape[1]
  logits = jnp.where(mask[:, None], logits.astype(jnp.float32), 0.0)
  log_rows = jnp.where(mask, -jnp.log(jnp.maximum(mask.sum(), 1).astype(jnp.float32)), -jnp.inf)[:, None]

  def log_plan(bias: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits + bias) + log_rows

  def excess(bias: jax.Array) -> jax.Array:
    """`[E]`, log of each column sum relative to its target."""
    return jnp.where(mask.any(), jax.nn.logsumexp(log_plan(bias), axis=0) + math.log(num_experts), 0.0)

  def iteration(state: tuple) -> tuple:
    bias, off, count = state
    bias = bias - off
    return bias, excess(bias), count + 1

  def unfinished(state: tuple) -> jax.Array:
    _, off, count = state
    return (jnp.abs(jnp.expm1(off)).max() > tolerance) & (count < max_iterations)

  start = jnp.zeros(num_experts, jnp.float32)
  return jnp.exp(log_plan(jax.lax.while_loop(unfinished, iteration, (start, excess(start), 0))[0]))
