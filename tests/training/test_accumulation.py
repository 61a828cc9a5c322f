"""A batch in several micro-batches is one step: the same gradients, and routers that learn once, from all of it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.models.placement import EveryNth
from moe.parallel.mesh import make_mesh, put_batch
from moe.routing import RouterInput
from moe.routing.methods.loss_free import bias_by_quantile
from moe.routing.methods.threshold import cutoffs
from moe.training.state import abstract_model, abstract_state, keys, make_init
from moe.training.step import RunInputs, make_train_step
from tests.models import tiny
from tests.routing.naive import learn, make, random_tokens
from tests.slow import slow

LENGTHS = [[7, 4], [11], [2], [3, 1], [11], [5], [1, 1, 1], [8]], [[1], [6], [2, 2], [5], [6], [1], [3], [6]]

# What these have seen of a step adds up over its micro-batches, so that nothing depends on their number.
EXACT = {
  "loss_free": {"bias_rate": 0.1},
  "relu": {"experts_per_token": 1.0},
  "prefix_rank": {"pseudo_observations": 4.0},
  "causal_soft_expert_choice": {},
  "switch": {"jitter": 0.0, "balance_loss": 1.0, "z_loss": 0.1},
}
# Their state moves by sums over tokens, as that of the others; switch has a test with two stacks.
ALIKE = ("relu", "prefix_rank", "causal_soft_expert_choice", "switch")


@functools.cache
def steps(name: str, accumulation: int, architecture: str = "decoder"):
  """State and metrics after two steps; the micro-batches have unequal numbers of tokens, in each stack."""
  layers = 1 if architecture == "encoder_decoder" else 2
  stack = tiny.stack(tiny.router(name, **EXACT[name]), layers, placement=EveryNth(1))
  config = tiny.config(architecture, stack, stack)
  mesh, optimizer = make_mesh(), optax.identity()
  model = abstract_model(config.make, mesh)
  state = make_init(config.make, optimizer, abstract_state(model, optimizer, mesh), {})(keys(0)[0])
  options = {"accumulation": accumulation, "logits_z_loss": 1e-3, "byte_lengths": np.ones(tiny.VOCABULARY)}
  step = make_train_step(model.graph, state, optimizer, **options)
  inputs = RunInputs(np.asarray(jax.random.key_data(keys(0)[1])), np.float32(0.1))
  first = jax.device_get(state)
  for seed in range(2):
    batch = {name: np.asarray(array) for name, array in tiny.packed(*LENGTHS, seed=seed).items()}
    state, metrics = step(state, put_batch(mesh, batch), inputs)
  return first, jax.device_get(state), jax.device_get(metrics)


@pytest.mark.parametrize("accumulation", [slow(2), 4])
@pytest.mark.parametrize("name", [slow(name) if name in ALIKE else name for name in EXACT])
def test_a_step_is_the_same_in_any_number_of_micro_batches(name, accumulation):
  _, whole, expected = steps(name, 1)
  _, parts, found = steps(name, accumulation)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, parts.router_state, whole.router_state)
  jax.tree.map(close, parts.params, whole.params)
  for each in ("loss", "auxiliary_loss", "gradient_norm"):
    close(found[each], expected[each], err_msg=each)
  means = {"experts_per_token", "gate_entropy", "loss/z"} & set(expected["layers"]["decoder"])
  for each in means:
    close(found["layers"]["decoder"][each], expected["layers"]["decoder"][each], err_msg=each)


def test_each_stacks_losses_are_weighted_by_its_own_tokens():
  _, whole, expected = steps("switch", 1, "encoder_decoder")
  _, parts, found = steps("switch", 4, "encoder_decoder")
  assert found["auxiliary_loss"] == pytest.approx(expected["auxiliary_loss"], rel=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parts.params, whole.params)


def test_four_micro_batches_move_relus_coefficient_by_one_step():
  first, after, _ = steps("relu", 4)
  (moved,) = {
    round(float(change), 4)
    for a, b in zip(jax.tree.leaves(after.router_state), jax.tree.leaves(first.router_state), strict=True)
    for change in a - b
  }
  assert moved == round(2 * math.log(1.2), 4)  # in two steps


def test_four_micro_batches_move_the_loss_free_bias_by_its_rate():
  first, after, _ = steps("loss_free", 4)
  for a, b in zip(jax.tree.leaves(after.router_state), jax.tree.leaves(first.router_state), strict=True):
    np.testing.assert_allclose(np.abs(a - b)[np.abs(a - b) > 1e-3], 0.2, rtol=1e-5)


def two_micro_batches():
  """The second has a quarter of the first's tokens."""
  tokens = random_tokens(4, 16)
  masks = jnp.ones((2, 16), bool), jnp.arange(16)[None] < jnp.array([[8], [0]])
  return [RouterInput(part, mask) for part, mask in zip((tokens[:2], tokens[2:]), masks, strict=True)]


def test_a_threshold_moves_to_the_mean_cutoff_weighted_by_tokens_and_counts_one_step():
  router, parts = make("threshold", slack=None), two_micro_batches()
  each = [cutoffs(jax.nn.softmax(part.tokens @ router.kernel[...]), part.mask, 2.0) for part in parts]
  learn(router, *parts)
  np.testing.assert_allclose(router.threshold[...], 0.8 * each[0] + 0.2 * each[1], rtol=1e-5)
  assert router.step[...] == 1


def test_the_quantile_bias_is_the_mean_of_the_micro_batches_weighted_by_tokens():
  router, parts = make("quantile_balanced"), two_micro_batches()
  scores = [jax.nn.sigmoid(part.tokens @ router.kernel[...]).reshape(-1, 4) for part in parts]
  each = [bias_by_quantile(jnp.zeros(4), s, part.mask.reshape(-1), 2) for s, part in zip(scores, parts, strict=True)]
  learn(router, *parts)
  np.testing.assert_allclose(router.bias[...], 0.8 * each[0] + 0.2 * each[1], rtol=1e-5, atol=1e-7)


def test_centroids_begin_in_the_first_micro_batch_with_tokens_and_move_to_the_means_of_all():
  empty, *parts = [
    RouterInput(part.tokens, part.mask & (number > 0), key=jax.random.key(number))
    for number, part in enumerate([two_micro_batches()[0], *two_micro_batches()])
  ]
  router, alone, together = make("k_means", decay=0.5), make("k_means", decay=0.5), make("k_means", decay=0.5)
  learn(router, empty, *parts)
  learn(alone, parts[0])
  np.testing.assert_array_equal(router.centroids[...], alone.centroids[...])
  nnx.update(together, nnx.state(router))
  whole = RouterInput(*(jnp.concatenate([getattr(part, n) for part in parts]) for n in ("tokens", "mask")))
  whole = RouterInput(whole.tokens, whole.mask, key=jax.random.key(0))
  learn(router, empty, *parts)
  learn(together, whole)
  np.testing.assert_allclose(router.centroids[...], together.centroids[...], rtol=1e-5, atol=1e-6)
