"""Top-1 routers that draw the expert: straight-through, REINFORCE and RL-R."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import build
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods.reinforce import expected_cost, log_probability, within_nucleus
from moe.routing.policy import policy_loss
from moe.routing.sampling import sampled_expert
from tests.routing.descent import descend
from tests.routing.naive import NUM_EXPERTS, make, of_sequences, random_tokens, route, routing_of

BATCH, LENGTH = 4, 16
KEY = jax.random.key(3)


def weights_of(router, tokens, *, training):
  """`[B, T, E]`, NaN where an expert does not see a token."""
  return of_sequences(routing_of(router, tokens, training=training, key=KEY), *tokens.shape[:2])


def logits_of(router, tokens):
  return tokens @ router.kernel[...]


@pytest.mark.parametrize("dense", [False, True])
def test_straight_through_sends_a_token_to_one_expert_with_weight_exactly_one(dense):
  router, tokens = make("straight_through", dense_backward=dense), random_tokens(BATCH, LENGTH)
  training = weights_of(router, tokens, training=True)
  assert set(np.unique(training[~np.isnan(training)])) == ({0.0, 1.0} if dense else {1.0})
  np.testing.assert_array_equal((training == 1).sum(-1), 1)
  assert np.isnan(training).any() != dense, "a dense backward pass needs every expert's output"
  evaluation = weights_of(router, tokens, training=False)
  np.testing.assert_array_equal(np.nan_to_num(evaluation).argmax(-1), logits_of(router, tokens).argmax(-1))
  np.testing.assert_array_equal((~np.isnan(evaluation)).sum(-1), 1)


@pytest.mark.parametrize("dense", [False, True])
def test_straight_through_gives_a_token_the_gradient_of_its_probabilities(dense):
  """sum_e <gain_e, dp_e>, over the chosen expert or over all of them: by hand, as no finite difference sees it."""
  router, tokens = make("straight_through", dense_backward=dense, balance_loss=0.0), random_tokens(1, 6)
  gain = jax.random.normal(jax.random.key(9), (6, NUM_EXPERTS))
  graph, params = nnx.split(router)
  inputs = RouterInput(tokens, jnp.ones((1, 6), bool), key=KEY)

  def routed(params):
    routing = nnx.merge(graph, params)(inputs, training=True).routing
    room = routing.token.shape[1]
    expert = jnp.repeat(jnp.arange(NUM_EXPERTS + 1), jnp.append(routing.group_sizes[0], room), total_repeat_length=room)
    gains = gain.at[routing.token[0], expert].get(mode="fill", fill_value=0)
    return (routing.weight[0] * gains).sum()

  def by_hand(params):
    logits = tokens @ params["kernel"][...]
    chosen = jax.nn.one_hot(sampled_expert(logits, KEY), NUM_EXPERTS)
    return (jax.nn.softmax(logits) * gain * (1 if dense else chosen)).sum()

  actual, expected = jax.jit(lambda params: (jax.grad(routed)(params), jax.grad(by_hand)(params)))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)


def test_experts_are_drawn_from_the_softmax():
  logits = jnp.array([1.0, -0.5, 0.0, -jnp.inf])
  counts = np.bincount(sampled_expert(jnp.broadcast_to(logits, (20_000, 4)), KEY), minlength=4) / 20_000
  probs = np.asarray(jax.nn.softmax(logits))
  assert (np.abs(counts - probs) <= 4 * np.sqrt(probs * (1 - probs) / 20_000)).all()


def test_the_nucleus_is_the_fewest_experts_with_the_mass():
  logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))
  kept = {mass: np.isfinite(within_nucleus(logits, mass)).tolist() for mass in (0.3, 0.5, 0.75, 1.0)}
  assert kept == {
    0.3: [False, True, False, False],
    0.5: [False, True, True, False],
    0.75: [False, True, True, True],
    1.0: [True, True, True, True],
  }
  np.testing.assert_array_equal(np.isfinite(within_nucleus(jnp.zeros(4), 0.5)), [True, True, False, False])
  gradient = jax.grad(lambda x: log_probability(within_nucleus(x, 0.5), jnp.int32(1)))(logits)
  np.testing.assert_allclose(gradient, [0, 3 / 7, -3 / 7, 0], rtol=1e-5)


@pytest.mark.parametrize("name", ["reinforce", "rl_r"])
def test_the_policy_holds_the_log_probability_of_the_expert_that_was_taken(name):
  router, tokens = make(name), random_tokens(BATCH, LENGTH).astype(jnp.bfloat16)
  output = route(router, tokens, training=True, key=KEY)
  weights = of_sequences(output.routing, BATCH, LENGTH)
  assert set(np.unique(weights[~np.isnan(weights)])) == {1.0}
  expert = np.nan_to_num(weights).argmax(-1)
  logits = logits_of(router, tokens.astype(jnp.float32))
  logits = within_nucleus(logits, 0.9) if name == "rl_r" else logits
  expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), expert[..., None], -1)[..., 0]
  np.testing.assert_allclose(output.policy.log_prob, expected, rtol=1e-4, atol=1e-5)
  assert output.policy.log_prob.dtype == output.policy.baseline.dtype == output.policy.weight.dtype == jnp.float32
  assert float(output.policy.weight) == pytest.approx(0.01)
  assert route(router, tokens).policy is None
  evaluation = of_sequences(route(router, tokens).routing, BATCH, LENGTH)
  np.testing.assert_array_equal(np.nan_to_num(evaluation).argmax(-1), logits.argmax(-1))


def test_the_baseline_begins_at_the_cost_of_a_guess_among_the_vocabulary():
  for name in ("reinforce", "rl_r"):
    config = build(RouterConfig, {"name": name})
    for vocabulary, expected in ((1000, np.log(1000)), (None, 1.0)):
      np.testing.assert_allclose(config.make(Site(8, 4, vocabulary), nnx.Rngs(0)).baseline[...], expected, rtol=1e-6)


def test_the_gradient_of_the_expected_cost_reaches_the_baselines_alone():
  logits, costs = jnp.array([[1.0, 0.0], [-1.0, 3.0]]), jnp.array([2.0, 5.0])
  value, pull = jax.vjp(expected_cost, logits, costs)
  np.testing.assert_allclose(value, jax.nn.softmax(logits) @ costs, rtol=1e-6)
  to_logits, to_costs = pull(jnp.ones(2))
  np.testing.assert_array_equal(to_logits, 0)
  np.testing.assert_allclose(to_costs, jax.nn.softmax(logits).sum(0), rtol=1e-6)


@pytest.mark.parametrize("name", ["reinforce", "rl_r"])
def test_the_draw_does_not_enter_the_baseline_which_would_bias_the_gradient(name):
  """A learned baseline of the drawn expert would take away the differences that the policy has to learn from."""
  router, tokens = make(name), random_tokens(BATCH, LENGTH)
  if name == "reinforce":
    router.baseline[...] = jnp.array([1.0, 2.0, 3.0, 4.0])
  one, other = (route(router, tokens, training=True, key=jax.random.key(seed)).policy for seed in range(2))
  assert (one.log_prob != other.log_prob).any()
  assert len(np.unique(one.baseline)) == BATCH * LENGTH
  np.testing.assert_array_equal(one.baseline, other.baseline)


def test_the_baseline_of_rl_r_does_not_reach_into_the_layers_below():
  router, tokens = make("rl_r"), random_tokens(1, 8)

  @jax.jit
  def baseline(tokens):
    return jax.vjp(lambda tokens: route(router, tokens, training=True, key=KEY).policy.baseline, tokens)

  value, pull = baseline(tokens)
  assert len(np.unique(value)) == 8, "it reads the token"
  np.testing.assert_array_equal(pull(jnp.ones_like(value))[0], 0)


def test_entropy_is_rewarded_and_imbalance_punished():
  output = route(
    make("reinforce", negative_entropy_loss=0.3, balance_loss=0.2), random_tokens(2, 8), training=True, key=KEY
  )
  assert float(output.losses["negative_entropy"]) == pytest.approx(-float(output.metrics["gate_entropy"]), rel=1e-5)
  expected = 0.2 * output.losses["balance"] + 0.3 * output.losses["negative_entropy"]
  assert float(output.auxiliary_loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["reinforce", "rl_r"])
def test_from_costs_alone_the_policy_learns_which_expert_is_right_for_which_token(name):
  """Three kinds of token; expert `right[kind]` costs 1 nat, every other 3. Only `policy_loss` is trained on."""
  kinds, right = jnp.tile(jnp.arange(3), 8)[None], jnp.array([2, 0, 3])
  mask = jnp.ones(kinds.shape, bool)
  router = make(name, d_model=3, policy_loss=1.0)
  router.kernel[...] = router.kernel[...] / 50
  inputs = lambda key: RouterInput(jnp.eye(3)[kinds], mask, key=key)  # noqa: E731

  def loss(router, key):
    output = router(inputs(key), training=True)
    # `token` is sorted by expert: a token's index in it tells which one took it.
    index = jnp.argsort(output.routing.token[0])[: mask.size]
    expert = jnp.searchsorted(jnp.cumsum(output.routing.group_sizes[0]), index, side="right")
    return policy_loss(output.policy, jnp.where(expert == right[kinds[0]], 1.0, 3.0)[None], mask)

  router = descend(router, loss, 400, 0.05)
  probs = jax.nn.softmax(router.kernel[...])
  np.testing.assert_array_equal(probs.argmax(-1), right)
  assert (probs.max(-1) > 0.9).all()
  evaluation = router(inputs(None), training=False).routing
  np.testing.assert_array_equal(evaluation.group_sizes[0], [8, 0, 8, 8])
  baseline = router(inputs(KEY), training=True).policy.baseline
  np.testing.assert_allclose(baseline, 1.0, atol=0.2)
