import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moe.data import DataError
from moe.models import ModelOutput
from moe.parallel.mesh import make_mesh, put_batch
from moe.routing import RouterState
from moe.training.optimization.optimizer import Adafactor
from moe.training.optimization.schedule import Constant
from moe.training.state import abstract_model, abstract_state, keys, make_init
from moe.training.step import (
  RunInputs,
  bits_per_byte,
  divergence,
  make_eval_step,
  make_train_step,
  micro_batches,
  token_sums,
)
from moe.training.validation import evaluate_batches

VOCABULARY = 7
BYTES = np.array([0, 0, 1, 1, 1, 2, 3])


class Counter(nnx.Module):
  """In place of a stack: counts how often it learned, and from how many tokens."""

  def __init__(self):
    self.calls, self.tokens = RouterState(jnp.zeros((), jnp.int32)), RouterState(jnp.zeros((), jnp.int32))

  def learn(self, seen):
    self.calls[...] += 1
    self.tokens[...] += seen["tokens"].sum()


class Table(nnx.Module):
  """Logits looked up by position; an auxiliary loss that is a known function of a parameter of its own."""

  def __init__(self, length, auxiliary, rngs):
    self.auxiliary = auxiliary
    self.table = nnx.Param(jax.random.normal(rngs.params(), (length, VOCABULARY)))
    self.pull = nnx.Param(jnp.ones(()))
    self.decoder = Counter()

  def __call__(self, batch, *, training, key):
    logits = jnp.broadcast_to(self.table[...], (*batch["targets"].shape, VOCABULARY))
    noise = jax.random.uniform(key) if training else jnp.zeros(())
    weight = batch["loss_weights"].sum()
    metrics = {"decoder": {"noise": noise[None], "load": jnp.ones((1, 2)), "weight": weight[None]}}
    seen = {"decoder": {"tokens": (batch["targets_segments"] > 0).sum()}} if training else {}
    auxiliary = {"decoder": self.auxiliary * self.pull[...] ** 2}
    return ModelOutput(logits, auxiliary, metrics, routing={}, policy={}, seen=seen)


def make(*, accumulation=1, auxiliary=0.0, z=0.0, length=5, learning_rate=0.1):
  """The compiled step of a `Table` under plain gradient descent, and its first state."""
  mesh, optimizer = make_mesh(), optax.identity()
  graph, state = first_state(functools.partial(_table, length, auxiliary), optimizer, mesh)
  options = {"accumulation": accumulation, "byte_lengths": BYTES}
  step = with_inputs(make_train_step(graph, state, optimizer, logits_z_loss=z, **options), learning_rate)
  return step, state, make_eval_step(graph, mesh=mesh, **options), mesh


def with_inputs(step, learning_rate, seed=0):
  """The step as a function of state and batch alone."""
  inputs = RunInputs(np.asarray(jax.random.key_data(keys(seed)[1])), np.float32(learning_rate))
  return lambda state, batch: step(state, batch, inputs)


def first_state(make, optimizer, mesh):
  model = abstract_model(make, mesh)
  return model.graph, make_init(make, optimizer, abstract_state(model, optimizer, mesh), {})(keys(0)[0])


def _table(length, auxiliary, rngs):
  return Table(length, auxiliary, rngs)


def make_batch(rows=6, length=5, seed=0):
  """Rows with unequal numbers of weighted tokens, so that a mean of means differs from the mean."""
  draw = np.random.default_rng(seed)
  weights = (np.arange(length)[None] < draw.integers(1, length + 1, rows)[:, None]).astype(np.float32)
  segments = (weights > 0).astype(np.int32)
  return {
    "targets": draw.integers(1, VOCABULARY, (rows, length)).astype(np.int32),
    "targets_segments": segments,
    "loss_weights": weights,
  }


def test_sums_are_those_of_the_formula_in_float64():
  draw = np.random.default_rng(1)
  logits, targets = draw.normal(size=(2, 3, VOCABULARY)) * 4, draw.integers(0, VOCABULARY, (2, 3))
  weights = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
  sums = token_sums(jnp.asarray(logits, jnp.float32), jnp.asarray(targets), jnp.asarray(weights, jnp.float32), BYTES)
  normaliser = np.log(np.exp(logits).sum(-1))
  chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(sums["nll"], (weights * (normaliser - chosen)).sum(), rtol=1e-5)
  np.testing.assert_allclose(sums["z"], (weights * normaliser**2).sum(), rtol=1e-5)
  assert sums["correct"] == (weights * (logits.argmax(-1) == targets)).sum()
  assert sums["weight"] == 4
  assert sums["bytes"] == (weights * BYTES[targets]).sum()


def test_uniform_logits_cost_log_v_nats_and_their_z_loss_is_its_square():
  sums = token_sums(jnp.zeros((1, 4, VOCABULARY)), jnp.full((1, 4), 2), jnp.ones((1, 4)), BYTES)
  np.testing.assert_allclose([sums["nll"], sums["z"]], [4 * math.log(7), 4 * math.log(7) ** 2], rtol=1e-6)


def test_a_coin_flip_for_every_bit_is_eight_bits_per_byte():
  assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)


def test_the_loss_is_the_cross_entropy_alone_and_the_other_terms_are_reported_separately():
  batch = make_batch()
  step, state, *_ = make(auxiliary=3.0, z=0.01)
  bare_step, bare_state, *_ = make()
  state, metrics = step(state, batch)
  bare_state, bare = bare_step(bare_state, batch)
  assert metrics["loss"] == bare["loss"]
  np.testing.assert_allclose(metrics["auxiliary_loss"], 3.0)
  assert bare["auxiliary_loss"] == 0 and bare["logits_z_loss"] == 0 and metrics["logits_z_loss"] > 0
  np.testing.assert_allclose(state.params["pull"], 1 - 0.1 * 2 * 3.0, rtol=1e-5)
  assert bare_state.params["pull"] == 1


def test_the_logits_z_loss_is_its_weight_times_the_mean_squared_log_normaliser():
  step, state, *_ = make(z=0.01)
  batch = make_batch()
  table = np.asarray(state.params["table"], np.float64)
  squared = np.log(np.exp(table).sum(-1)) ** 2
  expected = 0.01 * (batch["loss_weights"] * squared).sum() / batch["loss_weights"].sum()
  np.testing.assert_allclose(step(state, batch)[1]["logits_z_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulated_gradients_are_those_of_the_whole_batch_whatever_its_token_counts(accumulation):
  batch = make_batch()
  whole_step, whole, *_ = make(z=0.01, auxiliary=2.0)
  parts_step, parts, *_ = make(z=0.01, auxiliary=2.0, accumulation=accumulation)
  whole, expected = whole_step(whole, batch)
  parts, found = parts_step(parts, batch)
  for name in ("table", "pull"):
    np.testing.assert_allclose(parts.params[name], whole.params[name], rtol=1e-6, atol=1e-7)
  for name in ("loss", "accuracy", "gradient_norm", "auxiliary_loss", "logits_z_loss", "tokens", "bits_per_byte"):
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_routers_learn_once_a_step_from_all_micro_batches(accumulation):
  step, state, *_ = make(accumulation=accumulation)
  batch = make_batch()
  state, _ = step(state, batch)
  state, _ = step(state, batch)
  assert state.router_state["decoder"]["calls"] == 2
  assert state.router_state["decoder"]["tokens"] == 2 * batch["loss_weights"].sum()


def test_metrics_of_routers_are_means_over_tokens_in_training_and_in_validation():
  """A metric that is each micro-batch's number of tokens; the second of two batches has next to none."""
  step, state, evaluate, mesh = make(accumulation=2)
  batches = [make_batch(seed=1), make_batch(seed=2)]
  for name in ("loss_weights", "targets_segments"):
    batches[1][name][1:] = 0
  counts = [batch["loss_weights"][start::2].sum() for batch in batches for start in range(2)]
  found = evaluate_batches(evaluate, state.params, state.router_state, batches, batches[0], mesh)
  assert found["decoder/layer_0/weight"] == pytest.approx(np.square(counts).sum() / np.sum(counts), rel=1e-6)
  _, metrics = step(state, batches[0])
  expected = np.square(counts[:2]).sum() / np.sum(counts[:2])
  np.testing.assert_allclose(metrics["layers"]["decoder"]["weight"], [expected], rtol=1e-6)
  assert metrics["layer_tokens"]["decoder"] == sum(counts[:2])


def test_an_empty_batch_changes_no_metric():
  _, state, evaluate, mesh = make(accumulation=2)
  full = make_batch()
  empty = {name: np.zeros_like(array) for name, array in full.items()}
  one, more = (
    evaluate_batches(evaluate, state.params, state.router_state, batches, empty, mesh)
    for batches in ([full], [empty, full, empty])
  )
  assert one == more


def test_micro_batches_hold_every_row_exactly_once():
  dealt = micro_batches({"x": jnp.arange(12)}, 3)["x"]
  assert dealt.shape == (3, 4)
  assert sorted(dealt.ravel().tolist()) == list(range(12))
  assert dealt[1].tolist() == [1, 4, 7, 10]


def test_randomness_depends_only_on_seed_and_step():
  batch = make_batch()
  step, state, *_ = make()
  state, first = step(state, batch)
  state, second = step(state, batch)
  again_step, again, *_ = make()
  again = dataclasses.replace(again, step=jnp.asarray(1, jnp.int32))
  resumed = again_step(again, batch)[1]
  noise = [m["layers"]["decoder"]["noise"].item() for m in (first, second, resumed)]
  assert noise[0] != noise[1]
  assert noise[1] == noise[2]


def test_the_gradient_norm_is_reported_before_clipping():
  mesh = make_mesh()
  optimizer = optax.clip_by_global_norm(1e-3)
  graph, state = first_state(functools.partial(_table, 5, 0.0), optimizer, mesh)
  options = {"accumulation": 1, "byte_lengths": BYTES, "logits_z_loss": 0.0}
  step = with_inputs(make_train_step(graph, state, optimizer, **options), 1.0)
  before = np.asarray(state.params["table"])
  state, metrics = step(state, make_batch())
  np.testing.assert_allclose(np.linalg.norm(state.params["table"] - before), 1e-3, rtol=1e-3)
  assert metrics["gradient_norm"] > 0.01


def test_what_is_frozen_stays_and_has_no_part_in_the_norm_of_the_gradient():
  """The other parameter's gradient is 2 * 0.5 * 1; of the routers' state, one number is frozen and the other moves."""
  mesh, optimizer = make_mesh(), optax.identity()
  graph, state = first_state(functools.partial(_table, 5, 0.5), optimizer, mesh)
  options = {"accumulation": 2, "byte_lengths": BYTES, "logits_z_loss": 0.0}
  frozen = {"table", "decoder/calls"}.__contains__
  step = with_inputs(make_train_step(graph, state, optimizer, frozen=frozen, **options), 0.1)
  before = np.asarray(state.params["table"])
  state, metrics = step(state, make_batch())
  np.testing.assert_array_equal(state.params["table"], before)
  assert metrics["gradient_norm"] == 1 and state.params["pull"] == np.float32(0.9)
  counter = state.router_state["decoder"]
  assert counter["calls"] == 0 and counter["tokens"] > 0


def test_of_a_part_that_is_frozen_the_rest_moves_and_has_the_only_part_in_the_norm_of_the_gradient():
  """The first three positions of a table of logits, whose gradients are those of a step without any frozen."""
  mesh, optimizer = make_mesh(), optax.identity()
  graph, state = first_state(functools.partial(_table, 5, 0.0), optimizer, mesh)
  options = {"accumulation": 1, "byte_lengths": BYTES, "logits_z_loss": 0.0}
  mask, before = (np.arange(5) < 3)[:, None], np.asarray(state.params["table"])
  frozen = {"table": mask}
  moved = {}
  for name, given in (("part", lambda path: frozen.get(path, False)), ("nothing", lambda path: False)):
    step = with_inputs(make_train_step(graph, state, optimizer, frozen=given, **options), 1.0)
    new, metrics = step(jax.tree.map(jnp.copy, state), make_batch())
    moved[name] = np.asarray(new.params["table"]) - before
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(moved[name]), rtol=1e-3)
  np.testing.assert_array_equal(moved["part"][:3], 0.0)
  np.testing.assert_array_equal(moved["part"][3:], moved["nothing"][3:])
  assert np.all(moved["part"][3:].any(axis=1))


def test_the_divergence_of_two_coins_is_that_of_the_hand():
  """KL(3/4, 1/4 || 1/2, 1/2) = 3/4 log(3/2) + 1/4 log(1/2), and the other way round 1/2 log(2/3) + 1/2 log 2."""
  biased, fair = jnp.log(jnp.array([[[3.0, 1.0]]])), jnp.zeros((1, 1, 2))
  there, back = divergence(biased, fair), divergence(fair, biased)
  np.testing.assert_allclose(there, [[0.75 * math.log(1.5) - 0.25 * math.log(2)]], rtol=1e-5)
  np.testing.assert_allclose(back, [[0.5 * math.log(2 / 3) + 0.5 * math.log(2)]], rtol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_model_is_held_to_what_its_source_predicts(accumulation):
  """Against itself it costs nothing; against another the weighted mean over target tokens, whatever the micro-batches.

  A step of plain descent then moves the table by the gradient of both: softmax(new) - softmax(old) per token.
  """
  mesh, optimizer, batch = make_mesh(), optax.identity(), make_batch()
  graph, state = first_state(functools.partial(_table, 5, 0.0), optimizer, mesh)
  options = {"accumulation": accumulation, "byte_lengths": BYTES, "logits_z_loss": 0.0}
  held, free = (make_train_step(graph, state, optimizer, kl_loss=kl, **options) for kl in (2.0, 0.0))
  table, key = np.asarray(state.params["table"]), np.asarray(jax.random.key_data(keys(0)[1]))
  other = np.random.default_rng(3).normal(size=table.shape).astype(np.float32)
  moved, costs = {}, {}
  for name, step, source in (("itself", held, table), ("other", held, other), ("free", free, None)):
    given = None if source is None else (dict(state.params) | {"table": jnp.asarray(source)}, state.router_state)
    inputs = RunInputs(key, np.float32(1.0), jax.tree.map(jnp.copy, given))
    new, metrics = step(jax.tree.map(jnp.copy, state), batch, inputs)
    moved[name], costs[name] = np.asarray(new.params["table"]) - table, float(metrics["auxiliary_loss"])
  shares = batch["loss_weights"].sum(0) / batch["loss_weights"].sum()  # [positions]
  assert costs["itself"] == pytest.approx(0.0, abs=1e-6)
  np.testing.assert_allclose(moved["itself"], moved["free"], atol=1e-6)
  p, q = (np.asarray(jax.nn.softmax(jnp.asarray(logits))) for logits in (other, table))
  assert costs["other"] == pytest.approx(2 * float(shares @ (p * np.log(p / q)).sum(1)), rel=1e-4)
  np.testing.assert_allclose(moved["other"] - moved["free"], -2 * shares[:, None] * (q - p), atol=1e-6)


def test_a_batch_without_weight_changes_no_parameter():
  step, state, *_ = make()
  before = np.asarray(state.params["table"])
  batch = make_batch()
  state, metrics = step(state, batch | {"loss_weights": np.zeros_like(batch["loss_weights"])})
  np.testing.assert_array_equal(state.params["table"], before)
  assert metrics["loss"] == 0


def test_training_and_evaluating_compile_once_each():
  _, state, evaluate, mesh = make()
  graph, optimizer = abstract_model(functools.partial(_table, 5, 0.0), mesh).graph, optax.identity()
  step = make_train_step(graph, state, optimizer, accumulation=1, logits_z_loss=0.0, byte_lengths=BYTES)
  for seed in range(3):
    batch, key = put_batch(mesh, make_batch(seed=seed)), np.asarray(jax.random.key_data(keys(seed)[1]))
    state, _ = step(state, batch, RunInputs(key, np.float32(0.1 * seed)))
    evaluate(state.params, state.router_state, batch)
  assert step._cache_size() == 1
  assert evaluate._cache_size() == 1


def test_training_learns_the_most_frequent_token_of_each_position():
  config = Adafactor(learning_rate=0.3, schedule=Constant(warmup_steps=1))
  mesh, optimizer = make_mesh(), config.make({"table": 0, "pull": 0})
  graph, state = first_state(functools.partial(_table, 5, 0.0), optimizer, mesh)
  options = {"accumulation": 1, "byte_lengths": BYTES, "logits_z_loss": 0.0}
  step = with_inputs(make_train_step(graph, state, optimizer, **options), 0.3)
  target = np.array([[2, 3, 4, 5, 6]], np.int32)
  batch = {"targets": target, "targets_segments": np.ones_like(target), "loss_weights": np.ones((1, 5), np.float32)}
  for _ in range(60):
    state, metrics = step(state, batch)
  assert metrics["loss"] < 0.1 and metrics["accuracy"] == 1


def test_validation_is_the_mean_over_tokens_not_over_batches():
  _, state, evaluate, mesh = make(accumulation=2)
  batches = [make_batch(seed=1), make_batch(seed=2, rows=6)]
  batches[1]["loss_weights"][1:] = 0
  found = evaluate_batches(evaluate, state.params, state.router_state, batches, batches[0], mesh)
  table = np.asarray(state.params["table"], np.float64)
  log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
  nll = weight = text = 0
  for batch in batches:
    chosen = log_p[np.arange(5)[None], batch["targets"]]
    nll -= (batch["loss_weights"] * chosen).sum()
    weight += batch["loss_weights"].sum()
    text += (batch["loss_weights"] * BYTES[batch["targets"]]).sum()
  assert found["tokens"] == weight and found["bytes"] == text
  assert found["loss"] == pytest.approx(nll / weight, rel=1e-6)
  assert found["perplexity"] == pytest.approx(math.exp(nll / weight), rel=1e-5)
  assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / text, rel=1e-6)


def test_validation_reads_at_most_limit_batches():
  _, state, evaluate, mesh = make()
  batches = [make_batch(seed=seed) for seed in range(3)]
  found = evaluate_batches(evaluate, state.params, state.router_state, batches, batches[0], mesh, limit=1)
  assert found["tokens"] == batches[0]["loss_weights"].sum()


def test_validation_of_nothing_is_an_error():
  _, state, evaluate, mesh = make()
  with pytest.raises(DataError, match="no token"):
    evaluate_batches(evaluate, state.params, state.router_state, [], make_batch(), mesh)
