"""Capped expert choice: the paper's program against an exact solver, and stable matching against serving in order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from moe.routing.methods.expert_choice import expert_choice
from moe.routing.solvers.capped_choice import deferred_acceptance, dykstra_plan, top_tokens, two_block_plan

dykstra = jax.jit(dykstra_plan, static_argnames=("k", "b", "lam"))
two_block = jax.jit(two_block_plan, static_argnames=("k", "b", "lam"))
accept = jax.jit(deferred_acceptance, static_argnames=("k", "b"))


@functools.cache
def scores_of(n: int, experts: int, seed: int = 0):
  return jax.nn.softmax(jax.random.normal(jax.random.key(seed), (n, experts)))


def all_real(n: int):
  return jnp.ones(n, bool)


def experts_per_token(token, n: int):
  return np.bincount(np.ravel(token), minlength=n + 1)[:n]


def over_cap(token, n: int, b: int) -> float:
  """Share of the tokens that more than b experts take."""
  return (experts_per_token(token, n) > b).mean()


def value_of(scores, token) -> float:
  padded = np.append(np.asarray(scores, float), np.zeros((1, scores.shape[1])), axis=0)
  return np.take_along_axis(padded.T, np.asarray(token), axis=1).sum()


def optimum(scores, k: int, b: int) -> float:
  """The program's largest value at lam = 0, by linear programming; some integral A has it."""
  n, experts = scores.shape
  rows = sparse.kron(sparse.eye(experts), np.ones((1, n)))
  columns = sparse.kron(np.ones((1, experts)), sparse.eye(n))
  costs = -np.asarray(scores, float).T.ravel()
  return -linprog(costs, columns, np.full(n, b), rows, np.full(experts, k), bounds=(0, 1)).fun


def served_in_order(scores, k: int, b: int):
  """Bool `[n, E]`: pairs by falling score, each taken if its expert and its token both have room."""
  taken = np.zeros(scores.shape, bool)
  for token, expert in zip(*np.unravel_index(np.argsort(-np.asarray(scores), axis=None), scores.shape), strict=True):
    taken[token, expert] = taken[token].sum() < b and taken[:, expert].sum() < k
  return taken


def taken_by(token, n: int):
  """Bool `[n, E]` of `[E, k]` tokens; every expert's are different."""
  counts = np.stack([np.bincount(row, minlength=n + 1)[:n] for row in np.asarray(token)], axis=1)
  assert counts.max() <= 1
  return counts == 1


def reference_dykstra(scores, k: int, b: int, lam: float, rounds: int):
  """The projections as the sets are written, on A itself: a lam at which nothing underflows."""
  plan = np.exp(np.asarray(scores, float).T / lam)
  column, entry = np.ones(plan.shape[1]), np.ones_like(plan)
  for _ in range(rounds):
    plan *= k / plan.sum(1, keepdims=True)
    before = plan * column
    plan = before * np.minimum(1, b / before.sum(0))
    column = (before / plan)[0]
    before = plan * entry
    plan = np.minimum(before, 1)
    entry = before / plan
  return plan


# The program, by both methods.


def test_dykstras_projections_are_those_of_the_paper():
  scores = scores_of(64, 8)
  for rounds in (1, 2, 30):
    plan = jnp.exp(dykstra(scores, all_real(64), k=16, b=3, lam=0.1, iterations=rounds))
    np.testing.assert_allclose(plan, reference_dykstra(scores, 16, 3, 0.1, rounds), rtol=1e-4)


@pytest.mark.parametrize("b", [2, 3])
def test_both_methods_end_at_the_same_plan_and_it_keeps_all_constraints(b):
  scores = scores_of(64, 8)
  plans = [np.exp(f(scores, all_real(64), k=16, b=b, lam=0.1, iterations=3000)) for f in (dykstra, two_block)]
  np.testing.assert_allclose(*plans, atol=1e-3)
  for plan in plans:
    np.testing.assert_allclose(plan.sum(1), 16, rtol=1e-3)
    assert plan.sum(0).max() <= b + 1e-3
    assert (plan >= 0).all()
    assert (plan <= 1).all()


def test_the_plan_is_of_the_form_that_is_optimal():
  # log A = (S^T + u - v) / lam where A < 1; v is 0 unless the column is full.
  scores, lam = scores_of(64, 8), 0.02
  log_plan = np.asarray(two_block(scores, all_real(64), k=16, b=3, lam=lam, iterations=200))
  full = np.exp(log_plan).sum(0) > 3 - 1e-3
  free = np.where(log_plan < 0, lam * log_plan - scores.T, np.nan)
  u = np.nanmean(free[:, ~full], axis=1, keepdims=True)
  v = u - free
  assert full.any()
  np.testing.assert_allclose(v[:, ~full][~np.isnan(v[:, ~full])], 0, atol=1e-4)
  assert np.nanmin(v) > -1e-4
  np.testing.assert_allclose(np.nanmax(v, axis=0), np.nanmin(v, axis=0), atol=1e-4)


def test_without_a_cap_that_binds_it_is_expert_choice():
  scores = scores_of(64, 8)
  plain = expert_choice(scores, all_real(64), 16).token
  for f in (dykstra, two_block):
    token = top_tokens(f(scores, all_real(64), k=16, b=8), 16)
    np.testing.assert_array_equal(np.sort(token), np.sort(plain))
  np.testing.assert_array_equal(accept(scores, all_real(64), k=16, b=8), plain)


@pytest.mark.parametrize("b", [2, 3])
def test_two_blocks_reach_the_exact_optimum(b):
  scores = scores_of(256, 16)
  token = top_tokens(two_block(scores, all_real(256), k=32, b=b, iterations=200), 32)
  assert value_of(scores, token) == pytest.approx(optimum(scores, 32, b), rel=3e-3 if b == 2 else 1e-3)
  assert over_cap(token, 256, b) <= (0.02 if b == 2 else 0.01)


@pytest.mark.parametrize("b", [2, 3])
def test_a_hundred_rounds_as_published_leave_many_more_over_the_cap_than_twenty_of_two_blocks(b):
  scores, mask = scores_of(1024, 64), all_real(1024)
  published = top_tokens(dykstra(scores, mask, k=32, b=b, iterations=100), 32)
  ours = top_tokens(two_block(scores, mask, k=32, b=b, iterations=20), 32)
  assert over_cap(published, 1024, b) > (0.2 if b == 2 else 0.03)
  assert over_cap(ours, 1024, b) < (0.06 if b == 2 else 0.01)
  assert experts_per_token(published, 1024).max() > experts_per_token(ours, 1024).max()


def test_with_slack_in_the_cap_twenty_iterations_are_within_a_thousandth_of_the_exact_optimum():
  scores, mask = scores_of(1024, 64), all_real(1024)
  best = optimum(scores, 32, 3)
  assert value_of(scores, top_tokens(two_block(scores, mask, k=32, b=3, iterations=20), 32)) == pytest.approx(
    best, rel=1e-3
  )
  hard = value_of(scores, accept(scores, mask, k=32, b=3))
  assert 0.998 * best <= hard <= best


# Rounding.


def test_every_expert_takes_the_tokens_of_its_largest_shares():
  log_plan = jnp.log(jnp.array([[0.5, 1.0, 0.25, 0.75], [1e-30, 0.0, 1.0, 1e-20]])).at[1, 1].set(-200)
  np.testing.assert_array_equal(top_tokens(log_plan, 3), [[1, 3, 0], [2, 3, 0]])


# Deferred acceptance.


def test_the_closed_form_example():
  scores = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.7, 0.3]])
  # Both want the third; it refuses the first expert, which takes its third choice instead.
  np.testing.assert_array_equal(accept(scores, all_real(4), k=2, b=1), [[0, 1], [2, 3]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k, b", [(16, 2), (16, 3), (9, 2), (24, 3)])
def test_it_is_what_serving_all_pairs_in_falling_order_of_score_gives(k, b, seed):
  scores = scores_of(64, 8, seed)
  np.testing.assert_array_equal(taken_by(accept(scores, all_real(64), k=k, b=b), 64), served_in_order(scores, k, b))


def test_no_expert_and_token_would_both_rather_change():
  scores, k, b = scores_of(64, 8), 16, 2
  taken = taken_by(accept(scores, all_real(64), k=k, b=b), 64)
  held = np.where(taken, scores, np.inf)
  worst_of_expert = np.where(taken.sum(0) < k, -np.inf, held.min(0))
  worst_of_token = np.where(taken.sum(1) < b, -np.inf, held.min(1))
  miss = ~taken & (scores > worst_of_expert) & (scores > worst_of_token[:, None])
  assert not miss.any()


@pytest.mark.parametrize("max_rounds", [1, 2, 5, 100])
def test_the_cap_holds_however_early_it_stops(max_rounds):
  token = accept(scores_of(256, 16), all_real(256), k=32, b=2, max_rounds=max_rounds)
  assert experts_per_token(token, 256).max() <= 2


def test_later_rounds_fill_slots_that_earlier_ones_leave_empty():
  empty = [(accept(scores_of(256, 16), all_real(256), k=32, b=2, max_rounds=r) == 256).sum() for r in (1, 5, 100)]
  assert empty[0] > empty[1] > empty[2]


def test_slots_that_no_token_is_left_for_stay_empty():
  token = accept(scores_of(64, 8), all_real(64), k=24, b=2)  # 192 slots for at most 128 assignments
  assert (token == 64).sum() == 64
  assert (experts_per_token(token, 64) == 2).all()


# What all share.


@pytest.mark.parametrize("real", [60, 40, 10, 0])
def test_padding_is_never_chosen_and_changes_nothing(real):
  scores, mask = scores_of(64, 8), np.random.default_rng(0).permutation(64) < real
  other = jnp.where(mask[:, None], scores, 1.0)
  for chosen in (
    lambda s: top_tokens(dykstra(s, mask, k=16, b=3), 16),
    lambda s: top_tokens(two_block(s, mask, k=16, b=3), 16),
    lambda s: accept(s, mask, k=16, b=3),
  ):
    token = np.asarray(chosen(scores))
    assert set(token.ravel()) <= {*np.flatnonzero(mask), 64}
    np.testing.assert_array_equal(token, chosen(other))


def test_padding_leaves_the_choice_among_the_others_as_it_is_without():
  scores, mask = scores_of(64, 8), np.arange(64) % 4 != 0
  for f in (dykstra, two_block):
    padded = f(scores, mask, k=8, b=3, lam=0.1)
    np.testing.assert_allclose(padded[:, mask], f(scores[mask], all_real(48), k=8, b=3, lam=0.1), atol=1e-3)


def test_groups_are_routed_apart():
  scores = jnp.stack([scores_of(64, 8, seed) for seed in range(2)])
  mask = jnp.arange(64) < jnp.array([[64], [50]])
  for f in (dykstra, two_block, accept):
    together = jax.vmap(functools.partial(f, k=16, b=3))(scores, mask)
    for group in range(2):
      np.testing.assert_allclose(together[group], f(scores[group], mask[group], k=16, b=3), rtol=1e-4, atol=1e-3)
