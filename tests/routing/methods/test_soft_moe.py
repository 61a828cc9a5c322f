"""Soft MoE against its equations, another implementation's numbers, and the FLOPs that it promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts import dispatch as local
from moe.experts.layer import MoE
from moe.routing import RouterConfig, Site, SoftRouting
from moe.routing.methods import soft_moe as equations
from tests.routing.naive import make, random_tokens, route, routing_of
from tests.routing.smooth import assert_gradient

SOFT = RouterConfig.choices["soft_moe"]
soft_moe, soft_moe_logits = jax.jit(equations.soft_moe), jax.jit(equations.soft_moe_logits)
MASK = jnp.array([[True] * 6, [True, True, False, True, False, False]])


def random_logits(experts: int = 3, slots: int = 2, seed: int = 0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(*MASK.shape, experts, slots)) * 2, jnp.float32)


def both(routing: SoftRouting):
  return np.asarray(routing.dispatch), np.asarray(routing.combine)


def test_a_slot_is_a_convex_mixture_of_all_tokens_and_a_token_of_all_slots():
  dispatch, combine = both(soft_moe(random_logits(), jnp.ones_like(MASK)))
  np.testing.assert_allclose(dispatch.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(combine.sum((2, 3)), 1, rtol=1e-6)
  assert (dispatch > 0).all()
  assert (combine > 0).all()


def test_equal_logits_give_every_token_the_mean_over_slots_of_the_mean_token():
  dispatch, combine = both(soft_moe(jnp.zeros((2, 6, 3, 2)), jnp.ones_like(MASK)))
  np.testing.assert_allclose(dispatch, 1 / 6, rtol=1e-6)
  np.testing.assert_allclose(combine, 1 / 6, rtol=1e-6)
  assert both(soft_moe(jnp.zeros((2, 6, 3, 2)), MASK))[0][1, MASK[1]] == pytest.approx(1 / 3), "the real ones alone"


def test_the_logits_are_scaled_cosines_so_the_size_of_tokens_and_slots_does_not_matter():
  tokens, kernel = random_tokens(2, 6), jax.random.normal(jax.random.key(0), (8, 3, 2))
  logits = soft_moe_logits(tokens, kernel, jnp.float32(3.0))
  np.testing.assert_allclose(soft_moe_logits(7 * tokens, 0.1 * kernel, jnp.float32(3.0)), logits, rtol=1e-5)
  aligned = soft_moe_logits(kernel[:, 1, 1][None, None], kernel, jnp.float32(3.0))
  assert float(aligned[0, 0, 1, 1]) == pytest.approx(3.0), "a token that points as its slot does"
  assert float(jnp.abs(logits).max()) < 3


def test_without_the_normalisation_dispatch_would_collapse_as_the_model_widens():
  """Appendix E of the paper: the largest weight with which a token enters a slot."""

  def largest(d: int, normalised: bool) -> float:
    tokens, kernel = (jax.random.normal(jax.random.key(i), (1, *shape)) for i, shape in enumerate([(64, d), (d, 8, 1)]))
    plain = jnp.einsum("gnd,dep->gnep", tokens, kernel[0])
    logits = soft_moe_logits(tokens, kernel[0], jnp.ones(())) if normalised else plain
    return float(soft_moe(logits, jnp.ones((1, 64), bool)).dispatch.max())

  assert largest(1024, True) < 1.1 / 64
  assert largest(1024, False) > 0.9


def ablated(**options):
  """Dispatch and combine weights `[6, 3, 2]` of the second group of random tokens, of which MASK hides some."""
  router = make("soft_moe", num_experts=3, slots=2, **options)
  return (np.asarray(weights[1]) for weights in both(route(router, random_tokens(2, 6), mask=MASK).routing))


def test_uniform_dispatch_makes_every_slot_the_mean_of_the_real_tokens():
  dispatch, combine = ablated(dispatch="uniform")
  np.testing.assert_allclose(dispatch, np.where(MASK[1], 1 / 3, 0)[:, None, None] * np.ones((1, 3, 2)), rtol=1e-6)
  np.testing.assert_allclose(combine.sum((1, 2)), MASK[1], rtol=1e-6)
  assert combine[0].std() > 0, "still soft"


def test_uniform_combine_makes_every_token_the_mean_of_the_slots():
  dispatch, combine = ablated(combine="uniform")
  np.testing.assert_allclose(combine, np.where(MASK[1], 1 / 6, 0)[:, None, None] * np.ones((1, 3, 2)), rtol=1e-6)
  np.testing.assert_allclose(dispatch.sum(0), 1, rtol=1e-6)
  assert dispatch[:, 0, 0].std() > 0, "still soft"


def test_by_identity_token_i_is_slot_i():
  dispatch, combine = ablated(dispatch="identity", combine="identity")
  expected = np.where(MASK[1][:, None], np.eye(6), 0).reshape(6, 3, 2)
  np.testing.assert_array_equal(dispatch, expected)
  np.testing.assert_array_equal(combine, expected)


def test_ablations_without_a_soft_part_have_nothing_to_learn():
  for mixing in ("uniform", "identity"):
    assert not jax.tree.leaves(nnx.state(SOFT(dispatch=mixing, combine=mixing).make(Site(8, 3), nnx.Rngs(0))))


def test_an_identity_is_refused_alone_and_where_slots_are_not_as_many_as_tokens():
  with pytest.raises(ConfigError, match="combine = 'soft': expected dispatch = 'identity' too"):
    SOFT(dispatch="identity")
  identity = SOFT(dispatch="identity", combine="identity", slots=2)
  identity.check(Site(8, 3), batch=4, length=6)
  with pytest.raises(
    ConfigError, match="dispatch = 'identity': expected as many slots as the 8 tokens of a group, not 6"
  ):
    identity.check(Site(8, 3), batch=4, length=8)


def test_a_large_scale_dispatches_single_tokens():
  logits = random_logits()
  dispatch, _ = both(soft_moe(1e4 * logits, MASK))
  masked = np.where(MASK[..., None, None], logits, -np.inf)
  np.testing.assert_allclose(dispatch, masked == masked.max(1, keepdims=True), atol=1e-6)


def test_permuted_tokens_are_mixed_the_same():
  logits, order = random_logits(), np.random.default_rng(0).permutation(6)
  for weights, permuted in zip(both(soft_moe(logits, MASK)), both(soft_moe(logits[:, order], MASK[:, order]))):
    np.testing.assert_allclose(permuted, weights[:, order], rtol=1e-6)


def test_padding_enters_no_slot_receives_nothing_and_changes_nothing():
  tokens = random_tokens(2, 16)
  mask = jnp.arange(16)[None] < jnp.array([[16], [9]])
  router = make("soft_moe", slots=2)
  routing = route(router, tokens, mask=mask).routing
  for weights in both(routing):
    assert (weights[~np.asarray(mask)] == 0).all()
  other = route(router, jnp.where(mask[..., None], tokens, 100.0), mask=mask).routing
  jax.tree.map(np.testing.assert_array_equal, routing, other)


def test_a_group_of_zero_padding_is_zero_and_its_gradient_finite():
  router, tokens = make("soft_moe"), jnp.zeros((2, 16, 8)).at[0].set(random_tokens(1, 16)[0])
  mask = jnp.array([[True] * 16, [False] * 16])
  graph, state = nnx.split(router)

  def total(state, tokens):
    routing = route(nnx.merge(graph, state), tokens, mask=mask).routing
    return (routing.combine[0] ** 2 + routing.dispatch[0] ** 2).sum() + routing.dispatch[1].sum(), routing.dispatch[1]

  gradients, padding = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(state, tokens)
  np.testing.assert_array_equal(padding, 0)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_gradient_is_that_of_the_two_softmaxes():
  logits, cotangents = random_logits(), (random_logits(seed=1), random_logits(seed=2))

  def plain(logits):
    real = MASK[..., None, None]
    dispatch = jnp.where(real, jax.nn.softmax(jnp.where(real, logits, -1e9), axis=1), 0)
    return dispatch, jnp.where(real, jax.nn.softmax(logits, axis=(2, 3)), 0)

  def ours(logits):
    routing = soft_moe(logits, MASK)
    return routing.dispatch, routing.combine

  (gradient,), (expected,) = (jax.jit(lambda g, f=f: jax.vjp(f, logits)[1](g))(cotangents) for f in (ours, plain))
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_the_gradient_of_all_parameters_agrees_with_finite_differences():
  graph, state = nnx.split(make("soft_moe", slots=2))
  tokens = random_tokens(2, 16)
  gain = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 16, 4, 2)), jnp.float32)

  def value(parts):
    state, tokens = parts
    routing = route(nnx.merge(graph, state), tokens, training=True).routing
    return (gain[0] * routing.dispatch).sum() + (gain[1] * routing.combine).sum()

  assert_gradient(value, (state, tokens), step=3e-2)


def test_every_slot_weighs_the_same_in_the_load_and_no_token_is_dropped():
  metrics = route(make("soft_moe", slots=2), random_tokens(2, 16)).metrics
  np.testing.assert_allclose(metrics["load"], 1 / 4, rtol=1e-6)
  assert float(metrics["dropped"]) == 0
  assert float(metrics["capacity_factor"]) == 0.5


# --- cost


def flops(tokens: int, experts: int, slots: int) -> float:
  """Forward and backward of one layer, by XLA's count: width 32, hidden 64."""
  graph, params = nnx.split(MoE(32, experts, 64, {"name": "soft_moe", "slots": slots}, rngs=nnx.Rngs(0)))

  def value(params, x):
    segments = jnp.ones((1, tokens), jnp.int32)
    return nnx.merge(graph, params)(x, segments=segments, training=True)[0].sum()

  return jax.jit(jax.grad(value, argnums=(0, 1))).lower(params, jnp.ones((1, tokens, 32))).cost_analysis()["flops"]


def test_the_cost_is_set_by_tokens_times_slots_and_not_by_the_number_of_experts():
  count = functools.cache(flops)
  n, slots, d, f = 256, 32, 32, 64
  # Logits, dispatch and combine multiply [n, S] by d; the experts [S, d] by f, twice. Backward is twice forward.
  products = 3 * (3 * 2 * n * slots * d + 2 * 2 * slots * d * f)
  for experts in (2, 8, 32):
    assert count(n, experts, slots // experts) == pytest.approx(products, rel=0.15)
    assert count(n, experts, slots // experts) == pytest.approx(count(n, 8, 4), rel=0.02), "the experts are free"
  by_tokens = [count(2 * n, 8, p) - count(n, 8, p) for p in (4, 8)]
  assert by_tokens[1] == pytest.approx(2 * by_tokens[0], rel=0.1), "each token costs what there are slots"


# --- parity


@pytest.fixture(scope="module")
def reference(parity_dir):
  return np.load(parity_dir / "lucidrains_softmoe.npz")


def reference_layer(parts, mask):
  """Their layer by our functions.

  They normalise tokens and slots by the root of the mean square, times a gain (1 in the example), and mix the
  normalised tokens; here the cosines are multiplied by one scale, and the tokens are mixed as they come. So theirs is
  ours on tokens of length sqrt(d), with scale d. Their experts have biases and the exact GELU.
  """
  x, embeddings, experts = parts
  d = x.shape[-1]
  tokens = d**0.5 * equations.unit(x, axis=-1)
  routing = soft_moe(soft_moe_logits(tokens, jnp.moveaxis(embeddings, -1, 0), jnp.float32(d)), mask)
  inputs = local.dispatch_soft(tokens, routing)
  hidden = [jax.nn.gelu(s @ e["0.weight"].T + e["0.bias"], approximate=False) for s, e in zip(inputs, experts)]
  outputs = jnp.stack([h @ e["3.weight"].T + e["3.bias"] for h, e in zip(hidden, experts)])
  return local.combine_soft(outputs, routing)


def reference_parts(reference, prefix: str, x: str):
  names = ("0.weight", "0.bias", "3.weight", "3.bias")
  experts = [{name: reference[f"{prefix}_experts.experts.{e}.{name}"] for name in names} for e in range(4)]
  return jax.tree.map(jnp.asarray, (reference[x], reference[f"{prefix}_slot_embeds"], experts))


def test_outputs_and_gradients_are_those_of_another_implementation(reference):
  everybody, g = jnp.ones((2, 12), bool), reference["in_g"]

  @jax.jit
  def forward_and_backward(parts):
    output, pull_back = jax.vjp(lambda parts: reference_layer(parts, everybody), parts)
    return output, pull_back(jnp.asarray(g))[0]

  output, gradients = forward_and_backward(reference_parts(reference, "w", "in_x"))
  np.testing.assert_allclose(output, reference["out_y"], atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    gradients,
    reference_parts(reference, "grad", "grad_x"),
  )


def test_masked_outputs_are_theirs_but_for_padding_which_here_receives_nothing(reference):
  mask = reference["in_mask"]
  output = jax.jit(reference_layer)(reference_parts(reference, "w", "in_x"), jnp.asarray(mask))
  np.testing.assert_allclose(output[mask], reference["out_y_masked"][mask], atol=1e-5)
  np.testing.assert_array_equal(output[~mask], 0)


# --- configuration


def test_slots_are_given_or_follow_from_a_capacity_factor():
  assert SOFT().slots_of_expert(8) == 1
  assert SOFT(slots=3).slots_of_expert(8) == 3
  assert SOFT(capacity_factor=1.0, group_size=196).slots_of_expert(32) == 6
  assert make("soft_moe", capacity_factor=1.0, group_size=16).kernel.shape == (8, 4, 4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"slots": 0}, "slots = 0: expected at least 1"),
    ({"capacity_factor": 1.0}, r"capacity_factor = 1\.0: expected None unless group_size > 0"),
    ({"slots": 2, "capacity_factor": 1.0, "group_size": 8}, r"capacity_factor = 1\.0: expected None beside slots = 2"),
    ({"group_size": -1}, "group_size = -1: expected at least 0"),
  ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
  with pytest.raises(ConfigError, match=message):
    SOFT(**options)


def test_there_may_be_more_slots_than_tokens():
  router, tokens = make("soft_moe", slots=5), random_tokens(2, 16)
  router.config.check(Site(8, 4), batch=2, length=16)
  output = route(router, tokens)
  assert output.routing.dispatch.shape == (2, 16, 4, 5)
  np.testing.assert_allclose(output.routing.dispatch.sum(1), 1, rtol=1e-5)
  assert float(output.metrics["capacity_factor"]) == pytest.approx(20 / 16)
  assert SOFT(capacity_factor=2.0, group_size=16).slots_of_expert(4) == 8


def test_training_noise_has_a_standard_deviation_of_one_over_the_experts():
  tokens, key = random_tokens(8, 64), jax.random.key(0)
  noisy, plain = make("soft_moe", noise=1.0), make("soft_moe")
  chosen = [np.log(routing_of(router, tokens, training=True, key=key).combine[..., 0]) for router in (noisy, plain)]
  between_experts = np.diff(chosen[0] - chosen[1], axis=-1)
  assert between_experts.std() == pytest.approx(2**0.5 / 4, rel=0.05)
  jax.tree.map(np.testing.assert_array_equal, routing_of(noisy, tokens), routing_of(plain, tokens))


def test_groups_within_sequences_do_not_see_other_sequences():
  choices = [SOFT(group_size=size) for size in (0, 8, 32)]
  assert [choice.is_batch_independent(16, training=True) for choice in choices] == [True, True, False]
