"""Soft expert choice against its closed forms, an exact solver and the limits that it stands between."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods import soft_expert_choice as equations
from moe.routing.methods.expert_choice import expert_choice
from tests.routing.naive import learn, make, random_tokens, route, routing_of, token_weights
from tests.routing.smooth import assert_gradient

SOFT, CAUSAL = RouterConfig.choices["soft_expert_choice"], RouterConfig.choices["causal_soft_expert_choice"]
relaxed_top_k = jax.jit(equations.relaxed_top_k, static_argnums=2)


def scores_of(*shape: int, seed: int = 0, size: float = 1.0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * size, jnp.float32)


def exact(scores, k: int, smoothing: float) -> np.ndarray:
  """In float64, from the sorted breakpoints of the budget, which is linear between them."""
  scores = np.asarray(scores, np.float64)
  mass = lambda tau: np.clip((scores - tau) / smoothing, 0, 1).sum()  # noqa: E731
  knots = np.sort(np.concatenate([scores, scores - smoothing]))
  masses = np.array([mass(knot) for knot in knots])
  at = max(int((masses >= k).sum()) - 1, 0)
  low, high = knots[at], knots[min(at + 1, len(knots) - 1)]
  drop = mass(low) - mass(high)
  tau = low if drop == 0 else low + (high - low) * (mass(low) - k) / drop
  return np.clip((scores - tau) / smoothing, 0, 1)


@pytest.mark.parametrize(
  ("smoothing", "shares"),
  [(0.05, (1, 1, 0, 0)), (0.2, (1, 0.75, 0.25, 0)), (0.5, (1, 0.6, 0.4, 0)), (2.0, (0.6875, 0.5375, 0.4875, 0.2875))],
)
def test_the_closed_form_examples(smoothing, shares):
  found = relaxed_top_k(jnp.array([0.9, 0.6, 0.5, 0.1]), jnp.ones(4, bool), 2, smoothing)
  np.testing.assert_allclose(found, shares, atol=1e-6)


@pytest.mark.parametrize("smoothing", [1e-6, 1e-3, 0.1, 1.0, 30.0, 1e4])
def test_it_solves_the_problem_exactly_and_meets_the_budget(smoothing):
  scores = scores_of(5, 300)
  shares = np.asarray(relaxed_top_k(scores, jnp.ones((5, 300), bool), 40, smoothing))
  np.testing.assert_allclose(shares.sum(-1, dtype=np.float64), 40, atol=1e-4)
  expected = [exact(row, 40, smoothing) for row in scores]
  np.testing.assert_allclose(shares, expected, atol=1e-5)


def test_a_small_lambda_is_expert_choice_and_a_large_one_uniform():
  probs, everybody = jax.nn.softmax(scores_of(40, 6)), jnp.ones(40, bool)
  hard = expert_choice(probs, everybody, 9)
  soft = relaxed_top_k(jnp.log(probs).T, jnp.broadcast_to(everybody, (6, 40)), 9, 1e-6)
  routing = equations.largest_shares(soft.T, soft.T * probs, 18)
  np.testing.assert_allclose(np.sort(routing.weight, axis=1)[:, 9:], np.sort(hard.weight, axis=1), atol=1e-6)
  np.testing.assert_array_equal(np.sort(routing.token, axis=1)[:, :9], np.sort(hard.token, axis=1))
  np.testing.assert_array_equal(np.sort(routing.token, axis=1)[:, 9:], 40)
  uniform = relaxed_top_k(jnp.log(probs).T, jnp.broadcast_to(everybody, (6, 40)), 9, 1e6)
  np.testing.assert_allclose(uniform, 9 / 40, atol=1e-4)


def test_equal_scores_share_equally():
  shares = relaxed_top_k(jnp.array([1.0, 3.0, 1.0, 1.0]), jnp.ones(4, bool), 2, 0.1)
  np.testing.assert_allclose(shares, [1 / 3, 1, 1 / 3, 1 / 3], atol=1e-6)


def test_the_gradient_moves_mass_within_the_active_set_and_keeps_the_budget():
  scores, smoothing = scores_of(60), 0.5
  shares = relaxed_top_k(scores, jnp.ones(60, bool), 20, smoothing)
  jacobian = jax.jit(jax.jacrev(lambda s: equations.relaxed_top_k(s, jnp.ones(60, bool), 20, smoothing)))(scores)
  active = np.asarray((shares > 0) & (shares < 1), np.float32)
  assert 5 < active.sum() < 55
  expected = (np.diag(active) - np.outer(active, active) / active.sum()) / smoothing
  np.testing.assert_allclose(jacobian, expected, atol=1e-5)


def test_the_gradient_agrees_with_finite_differences():
  gain = scores_of(3, 60, seed=1)
  value = lambda s: (equations.relaxed_top_k(s, jnp.ones((3, 60), bool), 20, 0.5) * gain).sum()  # noqa: E731
  assert_gradient(value, scores_of(3, 60), step=1e-3, tolerance=2e-3)


def test_shares_are_continuous_where_the_hard_choice_jumps():
  """One token's score is raised past its neighbours': the largest change of any share in one step of length h."""
  h, smoothing = 1e-3, 0.1
  path = jnp.arange(-1, 1, h)
  others, everybody = scores_of(8), jnp.ones(9, bool)

  @functools.partial(jax.jit, static_argnums=0)
  def shares(smoothing):
    return jax.vmap(lambda t: equations.relaxed_top_k(jnp.append(others, t), everybody, 4, smoothing))(path)

  largest = lambda values: float(jnp.abs(jnp.diff(values, axis=0)).max())  # noqa: E731
  assert largest(shares(smoothing)) < 1.01 * h / smoothing
  assert largest(shares(1e-7)) > 0.9


def test_padding_takes_no_share_and_changes_none():
  scores, mask = scores_of(2, 30), jnp.arange(30)[None] < jnp.array([[30], [17]])
  shares = relaxed_top_k(scores, mask, 8, 0.3)
  np.testing.assert_array_equal(shares[1, 17:], 0)
  np.testing.assert_array_equal(relaxed_top_k(jnp.where(mask, scores, 50.0), mask, 8, 0.3), shares)
  np.testing.assert_allclose(shares.sum(-1), 8, rtol=1e-6)


def test_an_expert_takes_all_where_fewer_tokens_are_real_than_its_budget():
  mask = jnp.arange(10)[None] < jnp.array([[3], [0]])
  value = lambda s: (equations.relaxed_top_k(s, mask, 8, 0.3) ** 2).sum()  # noqa: E731
  shares, gradient = relaxed_top_k(scores_of(2, 10), mask, 8, 0.3), jax.jit(jax.grad(value))(scores_of(2, 10))
  np.testing.assert_array_equal(shares, mask)
  np.testing.assert_array_equal(gradient, 0)


# --- the router


def test_slots_hold_the_largest_shares_times_the_probability():
  router, tokens = make("soft_expert_choice", capacity_factor=1.0, smoothing=2.0, buffer=1.25), random_tokens(2, 16)
  output = route(router, tokens)
  log_probs = jax.nn.log_softmax(tokens.reshape(-1, 8) @ router.kernel[...])
  share = np.stack([exact(column, 8, 2.0) for column in np.asarray(log_probs).T], 1)
  weights = np.nan_to_num(token_weights(output.routing, 32, 4)[0])
  kept = share >= np.sort(share, axis=0)[-10]
  np.testing.assert_allclose(weights, np.where(kept, share * np.exp(log_probs), 0), atol=1e-5)
  lost = 1 - share[kept].sum() / 32
  assert float(output.metrics["overflow"]) == pytest.approx(lost, abs=1e-5)
  assert lost > 0.01, "the example loses something"


def test_a_buffer_for_all_loses_nothing_and_empty_slots_stay_empty():
  output = route(make("soft_expert_choice", buffer=4.0, capacity_factor=1.0), random_tokens(2, 16))
  assert float(output.metrics["overflow"]) == pytest.approx(0, abs=1e-6)
  assert (np.asarray(output.routing.token) == 32).any()
  np.testing.assert_array_equal(np.asarray(output.routing.weight)[np.asarray(output.routing.token) == 32], 0)


def test_a_budget_of_nothing_loses_nothing():
  """One real token of 16 gives each of 4 experts a budget of 1 / 4, rounded to 0."""
  mask = jnp.arange(16)[None] < 1
  output = route(make("soft_expert_choice", capacity_factor=1.0), random_tokens(1, 16), training=True, mask=mask)
  assert (np.asarray(output.routing.token) == 16).all()
  assert float(output.metrics["overflow"]) == 0


def test_without_the_gate_the_weights_of_an_expert_are_its_budget():
  routing = routing_of(make("soft_expert_choice", gate="one", buffer=4.0, capacity_factor=1.0), random_tokens(2, 16))
  np.testing.assert_allclose(routing.weight.sum(-1), 8, rtol=1e-5)


def test_padding_is_never_chosen():
  mask = jnp.arange(16)[None] < jnp.array([[16], [5]])
  weights = token_weights(routing_of(make("soft_expert_choice"), random_tokens(2, 16), mask=mask), 32, 4)
  assert np.isnan(weights.reshape(2, 16, 4)[1, 5:]).all()


@pytest.mark.parametrize("name", ["soft_expert_choice", "causal_soft_expert_choice"])
def test_the_kernel_gradient_agrees_with_finite_differences(name):
  """With slots for all: the cotangent is of tokens and experts, wherever they are listed."""
  options = {"buffer": 2.0} if name == "soft_expert_choice" else {"capacity_factor": 4.0}
  router, tokens = make(name, smoothing=2.0, **options), random_tokens(2, 16)
  gain = jnp.pad(scores_of(2, 32, 4, seed=3), ((0, 0), (0, 1), (0, 0)))
  graph, params, rest = nnx.split(router, nnx.Param, ...)

  def value(parts):
    params, tokens = parts
    routing = route(nnx.merge(graph, params, rest), tokens).routing
    groups, experts, _ = routing.token.shape
    g, e = jnp.arange(groups)[:, None, None], jnp.arange(experts)[None, :, None]
    return (routing.weight * gain[g, routing.token, e]).sum()

  assert_gradient(value, (params, tokens), step=1e-3, tolerance=1e-2)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"smoothing": 0.0}, r"smoothing = 0\.0: expected more than 0; expert_choice is the limit"),
    ({"buffer": 0.5}, r"buffer = 0\.5: expected at least 1"),
    ({"group_size": -1}, "group_size = -1"),
  ],
)
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    SOFT(**options)


def test_a_budget_that_does_not_fit_is_refused():
  with pytest.raises(ConfigError, match=r"^capacity_factor = 9\.0: .* from 0\.5 to 8"):
    SOFT(capacity_factor=9.0).check(Site(8, 8), batch=2, length=8)
  with pytest.raises(ConfigError, match=r"^eval_capacity_factor = 9\.0: .* from 0\.5 to 8"):
    SOFT(eval_capacity_factor=9.0).check(Site(8, 8), batch=2, length=8)


# --- the causal form


def test_equal_probabilities_meet_the_budget_from_the_start():
  router = make("causal_soft_expert_choice", experts_per_token=1.0, gate="one")
  router.kernel[...] = jnp.zeros_like(router.kernel)
  routing = routing_of(router, random_tokens(2, 16))
  np.testing.assert_allclose(routing.weight, 1 / 4, rtol=1e-5)
  np.testing.assert_array_equal(routing.group_sizes, 16)


def test_a_step_moves_thresholds_by_the_mean_excess_over_real_tokens_after_the_decision():
  router, tokens = make("causal_soft_expert_choice", gate="one", rate=0.3), random_tokens(2, 16)
  mask = jnp.arange(16)[None] < jnp.array([[16], [5]])
  before, tau = routing_of(router, tokens, mask=mask), np.asarray(router.tau[...])
  (output,) = learn(router, RouterInput(tokens, mask))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), output.routing, before)
  shares = np.nan_to_num(token_weights(output.routing, 16, 4)).sum((0, 1))
  np.testing.assert_allclose(router.tau[...] - tau, 0.3 * (shares / 21 - 2 / 4), rtol=1e-4, atol=1e-6)
  after = np.asarray(router.tau[...])
  router(RouterInput(tokens, mask), training=False)
  np.testing.assert_array_equal(router.tau[...], after, err_msg="evaluation moves nothing")


def test_the_budget_is_met_on_average_after_some_steps():
  router = make("causal_soft_expert_choice", experts_per_token=1.0, gate="one", rate=0.5)
  router.kernel[...] = router.kernel[...] * jnp.array([3.0, 1.0, 1.0, 0.2])
  tokens = random_tokens(4, 64)
  graph, params, state = nnx.split(router, nnx.Param, ...)

  @jax.jit
  def shares(state):
    router = nnx.merge(graph, params, state)
    inputs = RouterInput(tokens, jnp.ones((4, 64), bool))
    weight = router.select(inputs, training=True).weight
    learn(router, inputs)
    return nnx.split(router, nnx.Param, ...)[2], weight.mean((0, 1))

  _, first = shares(state)
  for _ in range(300):
    state, found = shares(state)
  assert np.abs(first - 1 / 4).max() > 0.05
  np.testing.assert_allclose(found, 1 / 4, atol=2e-3)


def test_a_budget_of_more_than_all_experts_is_refused():
  with pytest.raises(ConfigError, match=r"experts_per_token = 5\.0: expected at most the 4 experts"):
    CAUSAL(experts_per_token=5.0).check(Site(8, 4), batch=2, length=8)
  with pytest.raises(ConfigError, match=r"rate = 0\.0: expected more than 0"):
    CAUSAL(rate=0.0)
