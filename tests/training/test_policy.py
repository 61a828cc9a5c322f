"""The cost of a router's choice: in a decoder the cross-entropy of the token's target, in an encoder its row's mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.models import ModelOutput
from moe.routing import Policy
from moe.training.step import policies_loss, policy_weights
from tests.models.tiny import config, packed, router

LAYERS, ROWS, TARGETS, INPUTS, VOCABULARY = 2, 3, 5, 4, 7


def drawn(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def batch():
  """Rows with padding; not every real target carries loss."""
  lengths, inputs = np.array([5, 3, 2]), np.array([4, 1, 3])
  segments = (np.arange(TARGETS) < lengths[:, None]).astype(np.int32)
  return {
    "targets": np.random.default_rng(5).integers(1, VOCABULARY, (ROWS, TARGETS)),
    "targets_segments": segments,
    "inputs_segments": (np.arange(INPUTS) < inputs[:, None]).astype(np.int32),
    "loss_weights": (segments * (np.arange(TARGETS) != 1)).astype(np.float32),
  }


def output_of(**policy) -> ModelOutput:
  return ModelOutput(drawn(0, ROWS, TARGETS, VOCABULARY), {}, {}, {}, policy, {})


def policy_of(length) -> Policy:
  """Of two layers with different weights."""
  return Policy(drawn(1, LAYERS, ROWS, length), drawn(2, LAYERS, ROWS, length), jnp.array([0.5, 2.0]))


def cross_entropy(batch) -> np.ndarray:
  log_probs = np.asarray(jax.nn.log_softmax(output_of().logits))
  return -np.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]


def expected(policy, cost, real) -> float:
  """The loss, written as loops over layers and tokens."""
  total = 0.0
  for layer in range(LAYERS):
    for row, column in zip(*np.nonzero(real), strict=True):
      advantage = cost[row, column] - float(policy.baseline[layer, row, column])
      each = advantage * float(policy.log_prob[layer, row, column]) + 0.5 * advantage**2
      total += float(policy.weight[layer]) * each / real.sum()
  return total


def test_a_decoders_token_costs_the_cross_entropy_of_its_own_target(batch):
  policy = policy_of(TARGETS)
  loss = policies_loss(output_of(decoder=policy), batch)
  assert float(loss) == pytest.approx(expected(policy, cross_entropy(batch), batch["loss_weights"]), rel=1e-5)


def test_targets_without_a_loss_pay_no_router(batch):
  """Neither a decoder's token, such as one of a prefix, nor an encoder's in a row that has no loss at all."""
  weights = batch["loss_weights"].copy()
  weights[1] = 0
  costly = output_of().logits.at[jnp.asarray(weights) == 0].multiply(100.0)
  for side, length in (("decoder", TARGETS), ("encoder", INPUTS)):
    policy = {side: policy_of(length)}
    first, other = (
      policies_loss(ModelOutput(logits, {}, {}, {}, policy, {}), batch | {"loss_weights": weights})
      for logits in (output_of().logits, costly)
    )
    assert float(first) == float(other) != 0


def test_an_encoders_token_costs_the_mean_over_the_weighted_targets_of_its_row(batch):
  policy, weights = policy_of(INPUTS), batch["loss_weights"]
  mean = (cross_entropy(batch) * weights).sum(1) / weights.sum(1)
  cost = np.broadcast_to(mean[:, None], (ROWS, INPUTS))
  loss = policies_loss(output_of(encoder=policy), batch)
  assert float(loss) == pytest.approx(expected(policy, cost, batch["inputs_segments"]), rel=1e-5)


def test_both_stacks_add_up_and_routers_without_a_policy_add_nothing(batch):
  encoder, decoder = policy_of(INPUTS), policy_of(TARGETS)
  apart = policies_loss(output_of(encoder=encoder), batch) + policies_loss(output_of(decoder=decoder), batch)
  assert float(policies_loss(output_of(encoder=encoder, decoder=decoder), batch)) == pytest.approx(float(apart))
  assert float(policies_loss(output_of(encoder=None, decoder=None), batch)) == 0
  assert float(policies_loss(output_of(), batch)) == 0


def test_the_shares_of_micro_batches_add_up_to_the_loss_of_the_whole(batch):
  """Whatever the numbers of tokens, and of weighted targets, in each."""
  policy, whole = {"encoder": policy_of(INPUTS), "decoder": policy_of(TARGETS)}, output_of()
  weights = {side: each.sum() for side, each in policy_weights(batch).items()}

  def share(rows):
    of_rows = {side: Policy(one.log_prob[:, rows], one.baseline[:, rows], one.weight) for side, one in policy.items()}
    output = ModelOutput(whole.logits[rows], {}, {}, {}, of_rows, {})
    return policies_loss(output, {name: array[rows] for name, array in batch.items()}, weights)

  together = policies_loss(ModelOutput(whole.logits, {}, {}, {}, policy, {}), batch)
  assert float(share(np.array([0])) + share(np.array([1, 2]))) == pytest.approx(float(together), rel=1e-5)


def test_no_gradient_flows_through_the_cost(batch):
  def loss(logits, policy):
    return policies_loss(ModelOutput(logits, {}, {}, {}, {"decoder": policy}, {}), batch)

  policy = policy_of(TARGETS)
  to_logits, to_policy = jax.grad(loss, argnums=(0, 1))(output_of().logits, policy)
  np.testing.assert_array_equal(to_logits, 0)
  share = np.array([0.5, 2.0])[:, None, None] * batch["loss_weights"] / batch["loss_weights"].sum()
  advantage = cross_entropy(batch) - policy.baseline
  np.testing.assert_allclose(to_policy.log_prob, share * advantage, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(to_policy.baseline, -share * advantage, rtol=1e-4, atol=1e-6)


def test_in_a_model_the_router_gets_its_gradient_from_the_policy_loss_only():
  settings = config("decoder", router("rl_r", balance_loss=0.0, negative_entropy_loss=0.0))
  graph, params = nnx.split(settings.make(nnx.Rngs(0)))
  example = packed([[5, 3], [6]], [[1], [1]])

  def run(params):
    output = nnx.merge(graph, params)(example, training=True, key=jax.random.key(0))
    return policies_loss(output, example), jnp.square(output.logits).sum()

  @jax.jit
  def gradients(params):
    _, pull = jax.vjp(run, params)
    return [pull(of)[0] for of in ((1.0, 0.0), (0.0, 1.0))]

  of_policy, of_logits = (each["decoder"]["units"][0]["blocks"][1]["moe"]["router"] for each in gradients(params))
  assert sorted(of_policy) == ["baseline", "baseline_kernel", "kernel"]
  for name in of_policy:
    assert (np.asarray(of_policy[name][...]) != 0).any(), name
    np.testing.assert_array_equal(of_logits[name][...], 0)
