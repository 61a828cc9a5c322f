"""Sinkhorn's plan: its marginals, what must not change it, and how even its largest shares are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.solvers.sinkhorn import sinkhorn_plan

plan_of = jax.jit(sinkhorn_plan, static_argnames=("tolerance", "max_iterations"))


def logits_of(n: int, experts: int, scale: float = 1.0, seed: int = 0):
  """Normal logits of which experts get a bias evenly from -1.5 to 1.5."""
  return scale * (jax.random.normal(jax.random.key(seed), (n, experts)) + jnp.linspace(-1.5, 1.5, experts))


def relative_loads(plan):
  """`[E]`, tokens whose largest share is with the expert, over their mean."""
  return np.bincount(plan.argmax(1), minlength=plan.shape[1]) * plan.shape[1] / len(plan)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_marginals_are_uniform(scale):
  plan = plan_of(logits_of(256, 8, scale), jnp.ones(256, bool), tolerance=1e-4, max_iterations=1000)
  np.testing.assert_allclose(plan.sum(1), 1 / 256, rtol=1e-5)
  np.testing.assert_allclose(plan.sum(0), 1 / 8, rtol=1.1e-4)
  assert (plan >= 0).all()


def test_the_closed_form_example():
  # [[x, 1/2 - x], [1/2 - x, x]] keeps the cross ratio of exp(logits), 9 here.
  plan = plan_of(jnp.log(jnp.array([[9.0, 1.0], [1.0, 1.0]])), jnp.ones(2, bool), tolerance=1e-6)
  np.testing.assert_allclose(plan, [[0.375, 0.125], [0.125, 0.375]], rtol=1e-5)


def test_the_plan_is_the_exponential_of_the_logits_but_for_a_factor_per_token_and_one_per_expert():
  logits = logits_of(64, 8)
  factors = np.log(plan_of(logits, jnp.ones(64, bool))) - logits
  rows, columns = factors.mean(1, keepdims=True), factors.mean(0, keepdims=True)
  np.testing.assert_allclose(factors, rows + columns - factors.mean(), atol=1e-5)


def test_constants_per_token_and_per_expert_change_nothing():
  logits, mask = logits_of(64, 8), jnp.ones(64, bool)
  shifted = logits + 3 * jax.random.normal(jax.random.key(1), (64, 1)) + jax.random.normal(jax.random.key(2), (8,))
  plans = [plan_of(x, mask, tolerance=1e-6, max_iterations=1000) for x in (logits, shifted)]
  np.testing.assert_allclose(*plans, rtol=1e-4)


def test_large_logits_neither_overflow_nor_vanish():
  logits = logits_of(64, 8) + 1000 * (jnp.arange(8) == 3)
  plan = plan_of(logits, jnp.ones(64, bool))
  np.testing.assert_allclose(plan.sum(0), 1 / 8, rtol=1.1e-4)


def test_without_iterations_it_is_the_softmax():
  logits = logits_of(64, 8)
  plan = plan_of(logits, jnp.ones(64, bool), max_iterations=0)
  np.testing.assert_allclose(plan, jax.nn.softmax(logits) / 64, rtol=1e-5)


def test_iterations_end_at_the_tolerance():
  logits, mask = logits_of(256, 8), jnp.ones(256, bool)
  off = [jnp.abs(8 * plan_of(logits, mask, tolerance=t).sum(0) - 1).max() for t in (1e-1, 1e-2, 1e-3)]
  assert 1e-2 < off[0] <= 1e-1
  assert 1e-3 < off[1] <= 1e-2
  assert off[2] <= 1e-3


def test_the_largest_shares_are_nearly_balanced_after_few_iterations():
  logits, mask = logits_of(1024, 16), jnp.ones(1024, bool)
  raw, once, five = (relative_loads(plan_of(logits, mask, tolerance=0, max_iterations=i)) for i in (0, 1, 5))
  assert raw.max() > 3.5
  assert raw.min() < 0.1
  assert once.max() < 1.5
  assert once.min() > 0.6
  assert five.max() < 1.25
  assert five.min() > 0.75


def test_the_plan_is_balanced_but_its_largest_shares_only_nearly():
  plan = plan_of(logits_of(1024, 16), jnp.ones(1024, bool), tolerance=1e-6, max_iterations=1000)
  np.testing.assert_allclose(plan.sum(0) / plan.sum(0).mean(), 1, rtol=1e-4)
  assert 1.001 < relative_loads(plan).max() < 2


def test_padding_has_no_share_and_changes_no_other():
  logits, mask = logits_of(60, 8), jnp.arange(60) % 3 != 0
  plan = plan_of(logits, mask)
  np.testing.assert_array_equal(plan[~mask], 0)
  np.testing.assert_allclose(plan[mask], plan_of(logits[mask], jnp.ones(40, bool)), rtol=1e-4)
  np.testing.assert_array_equal(plan, plan_of(jnp.where(mask[:, None], logits, jnp.nan), mask))


def test_a_group_of_padding_has_no_plan():
  np.testing.assert_array_equal(plan_of(logits_of(8, 4), jnp.zeros(8, bool)), 0)


def test_groups_are_planned_apart():
  logits = jnp.stack([logits_of(64, 8), logits_of(64, 8, scale=4.0)])
  together = jax.jit(jax.vmap(sinkhorn_plan))(logits, jnp.ones((2, 64), bool))
  for group in range(2):
    np.testing.assert_allclose(together[group], plan_of(logits[group], jnp.ones(64, bool)), rtol=1e-5)
