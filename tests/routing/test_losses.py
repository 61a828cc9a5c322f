"""Auxiliary losses at the points where their values are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing.losses import balance_loss, importance_loss, load_loss, router_z_loss

EXPERTS = 4


def one_group(*rows):
  return jnp.array(rows)[None]


def everybody(group_tokens):
  return jnp.ones(group_tokens.shape[:2], bool)


@pytest.mark.parametrize("choices", [one_group([0], [1], [2], [3]), one_group([0, 1], [1, 2], [2, 3], [3, 0])])
def test_balance_loss_is_one_when_balanced_whatever_k(choices):
  probs = jnp.full((1, 4, EXPERTS), 1 / EXPERTS)
  assert float(balance_loss(probs, choices, everybody(choices))) == pytest.approx(1.0)


@pytest.mark.parametrize(
  ("choices", "expected"), [(one_group([0], [0]), EXPERTS), (one_group([0, 1], [0, 1]), EXPERTS / 2)]
)
def test_balance_loss_of_a_collapsed_router_is_experts_over_k(choices, expected):
  k = choices.shape[-1]
  probs = jnp.broadcast_to(jnp.array([1 / k] * k + [0.0] * (EXPERTS - k)), (1, 2, EXPERTS))
  assert float(balance_loss(probs, choices, everybody(choices))) == pytest.approx(expected)


def test_balance_loss_is_taken_in_each_group_where_capacity_is_counted():
  choices = jnp.array([[[0], [0]], [[1], [1]]])
  probs = jax.nn.one_hot(choices[..., 0], EXPERTS)
  # Pooled over the two groups it would be 2: each expert's buffer overflows all the same.
  assert float(balance_loss(probs, choices, everybody(choices))) == pytest.approx(EXPERTS)


def test_groups_count_by_their_real_tokens():
  choices = jnp.array([[[0], [0], [0]], [[0], [1], [0]]])
  probs = jax.nn.one_hot(choices[..., 0], EXPERTS)
  mask = jnp.array([[True, True, True], [True, True, False]])
  # Group 0: all on one expert, 4. Group 1: two real tokens on two experts, 2.
  assert float(balance_loss(probs, choices, mask)) == pytest.approx((3 * 4 + 2 * 2) / 5)


def test_balance_loss_pushes_probability_away_from_the_crowded_expert():
  choices = one_group([0], [0], [0], [1])
  gradient = jax.grad(lambda p: balance_loss(p, choices, everybody(choices)))(jnp.full((1, 4, EXPERTS), 0.25))
  np.testing.assert_allclose(gradient[0, 0], np.array([3, 1, 0, 0]) / 4, rtol=1e-6)


def test_importance_loss_is_zero_when_equal_and_experts_minus_one_when_collapsed():
  mask = jnp.ones((1, 3), bool)
  assert float(importance_loss(jnp.full((1, 3, EXPERTS), 0.25), mask)) == pytest.approx(0)
  collapsed = jnp.broadcast_to(jax.nn.one_hot(2, EXPERTS), (1, 3, EXPERTS))
  assert float(importance_loss(collapsed, mask)) == pytest.approx(EXPERTS - 1)


def test_load_loss_is_the_variation_of_the_chance_to_be_chosen_under_fresh_noise():
  rng, k, std, n = np.random.default_rng(0), 2, 0.7, 6
  logits = rng.normal(size=(1, n, EXPERTS)).astype(np.float32)
  noisy = logits + std * rng.normal(size=logits.shape).astype(np.float32)
  redrawn = logits + std * rng.normal(size=(20_000, *logits.shape[1:]))
  load = np.zeros(EXPERTS)
  for expert in range(EXPERTS):
    others = np.sort(np.delete(noisy[0], expert, axis=-1), axis=-1)[:, ::-1]
    load[expert] = (redrawn[..., expert] > others[:, k - 1]).mean(0).sum()
  got = load_loss(jnp.array(logits), jnp.array(noisy), k, std, jnp.ones((1, n), bool))
  assert float(got) == pytest.approx(load.var() / load.mean() ** 2, rel=0.05)


def test_load_loss_has_a_gradient_though_the_choice_has_none():
  noise = 0.5 * jax.random.normal(jax.random.key(0), (1, 6, EXPERTS))
  loss = lambda logits: load_loss(logits, logits + noise, 1, 0.5, jnp.ones((1, 6), bool))  # noqa: E731
  logits = jnp.broadcast_to(jnp.array([1.0, 0, 0, 0]), (1, 6, EXPERTS))
  lower = logits - 0.05 * jax.grad(loss)(logits)
  assert float(loss(lower)) < float(loss(logits))


@pytest.mark.parametrize("experts", [4, 16])
def test_z_loss_of_zero_logits_is_log_experts_squared(experts):
  mask = jnp.array([[True, True, False]])
  assert float(router_z_loss(jnp.zeros((1, 3, experts)), mask)) == pytest.approx(np.log(experts) ** 2, rel=1e-6)


@pytest.mark.parametrize("loss", ["balance", "importance", "load", "z"])
def test_padding_changes_no_loss_and_receives_no_gradient(loss):
  rng = np.random.default_rng(1)
  logits = jnp.array(rng.normal(size=(2, 5, EXPERTS)), jnp.float32)
  noise = jnp.array(rng.normal(size=logits.shape), jnp.float32)
  mask = jnp.array([[True, True, True, False, False], [True, False, True, True, False]])

  def value(logits):
    probs, choices = jax.nn.softmax(logits), jax.lax.top_k(logits, 2)[1]
    return {
      "balance": lambda: balance_loss(probs, choices, mask),
      "importance": lambda: importance_loss(probs, mask),
      "load": lambda: load_loss(logits, logits + noise, 2, 1.0, mask),
      "z": lambda: router_z_loss(logits, mask),
    }[loss]()

  garbage = jnp.where(mask[..., None], logits, 30 * noise)
  assert float(value(garbage)) == pytest.approx(float(value(logits)), rel=1e-6)
  gradient = jax.grad(value)(logits)
  np.testing.assert_array_equal(gradient[~mask], 0)
  assert (gradient[mask] != 0).any()


def test_a_batch_of_padding_alone_costs_nothing():
  zeros, mask = jnp.zeros((1, 3, EXPERTS)), jnp.zeros((1, 3), bool)
  choices = jnp.zeros((1, 3, 1), jnp.int32)
  values = [balance_loss(zeros, choices, mask), importance_loss(zeros, mask), router_z_loss(zeros, mask)]
  assert [float(v) for v in values] == [0, 0, 0]
