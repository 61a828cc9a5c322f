"""A dense model with its feed-forward networks copied to experts: the same function, and the same statistics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.convert import upcycling
from moe.convert.layers import join_layers, split_layers
from moe.convert.upcycling import add_noise, transposed, upcycle_statistics
from moe.experts import MoE
from moe.models import StackConfig
from moe.models.model_config import DepthConfig
from moe.models.placement import EveryNth, Last, Listed
from moe.nn.feed_forward import FeedForward
from moe.parallel.mesh import make_mesh
from moe.training.optimization.optimizer import Adafactor, AdamW
from moe.training.state import abstract_model, merge, split
from tests.models.tiny import batch, config, logits, router, stack

upcycle = jax.jit(upcycling.upcycle_params, static_argnums=2)

LAYERS = 4
DENSE = StackConfig(layers=LAYERS)
TOP2 = router("token_choice", top_k=2, renormalize=True, capacity_factor=None, eval_capacity_factor=None)
CHOICE = router("expert_choice", renormalize=True, capacity_factor=4.0)
# Of these placements the stacks of four layers are one unit, two units, and three.
PLACEMENTS = {"every_second": EveryNth(2), "last": Last(1), "listed": Listed((0, 3))}


def sparse(router=TOP2, placement=PLACEMENTS["last"], **moe):
  return stack(router, layers=LAYERS, placement=placement, **({"feed_forward": "geglu"} | moe))


@functools.cache
def parameters(settings, seed=0):
  """The model's structure, parameters as large as those of a fresh one, and states of routers."""
  graph, params, state = split(nnx.eval_shape(lambda: settings.make(nnx.Rngs(0))))
  draw = np.random.default_rng(seed)
  params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.5, leaf.shape), leaf.dtype), params)
  return graph, params, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)


def upcycled(dense, model):
  """The sparse model made of the dense one of seed 0, with the routers of another seed."""
  graph, fresh, state = parameters(model, 1)
  return merge(graph, upcycle(parameters(dense)[1], fresh, model), state)


def leaves(tree):
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_equal(ours, theirs):
  ours, theirs = leaves(ours), leaves(theirs)
  assert ours.keys() == theirs.keys()
  for path, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def test_layers_are_numbered_whatever_the_placement():
  """A fresh model's attention depends on the seed and on the number of the layer alone."""
  found = []
  for settings in (DENSE, sparse(placement=PLACEMENTS["listed"])):
    make = config("decoder", settings).make
    params = jax.jit(lambda make=make: split(make(nnx.Rngs(0)))[1])()["decoder"]
    layers = split_layers(params, settings.has_experts)
    assert tuple("moe" in layer for layer in layers) == settings.has_experts
    assert_equal(join_layers(layers, settings.has_experts)["units"], params["units"])
    found.append([layer["attention"] for layer in layers])
  assert_equal(*found)


def test_blocks_that_tokens_may_pass_by_keep_what_they_have_beside_their_network():
  """All layers have experts, and every second one a choice of depth: units of two layers, where the dense ones are."""
  depth, every = DepthConfig(capacity=0.25), EveryNth(1)
  old, new = (dataclasses.replace(each, depth=depth) for each in (DENSE, sparse(placement=every)))
  before, fresh = (parameters(config("decoder", each, allow_future_leakage=True))[1] for each in (old, new))
  after = upcycle(before, fresh, config("decoder", new, allow_future_leakage=True))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, fresh)
  layers = [split_layers(each["decoder"], of.kinds) for each, of in ((before, old), (after, new))]
  assert ["router" in layer for layer in layers[1]] == [False, True] * 2 and all("moe" in layer for layer in layers[1])
  for part in ("router", "attention"):
    assert_equal(*([layer.get(part) for layer in each] for each in layers))


def upcycled_layer(gates, **moe):
  """A network and the MoE layer made of it, as one-layer models."""
  dense = FeedForward(16, 24, "geglu", jnp.float32, rngs=nnx.Rngs(0))
  layer = MoE(16, 4, 24, gates, form="geglu", rngs=nnx.Rngs(1), **moe)
  network, fresh = (
    {"decoder": join_layers([one], (has,))}
    for one, has in (({"feed_forward": split(dense)[1]}, False), ({"moe": split(layer)[1]}, True))
  )
  model = config("decoder", stack(TOP2, layers=1, placement=EveryNth(1)))
  made = upcycle(network, fresh, model)["decoder"]
  nnx.update(layer, nnx.State(split_layers(made, (True,))[0]["moe"]))
  return dense, layer, jax.random.normal(jax.random.key(2), (3, 5, 16))


OF_SUM_1 = {
  "expert_choice": CHOICE,
  "top_2_of_many_slots": router("token_choice", top_k=2, renormalize=True, eval_capacity_factor=4.0),
  "dropless_top_2": TOP2,
  "dropless_loss_free": router("loss_free", top_k=3, renormalize=True, capacity_factor=None),
  "mixture_of_all": router("adaptive_mixture", capacity_factor=None),
}


@pytest.mark.parametrize("gates", OF_SUM_1.values(), ids=OF_SUM_1)
def test_with_gates_of_sum_1_and_room_for_every_token_a_layer_is_its_dense_network(gates):
  dense, layer, x = upcycled_layer(gates)
  np.testing.assert_allclose(nnx.jit(layer)(x)[0], dense(x), atol=1e-5)


def test_a_single_raw_gate_gives_the_dense_output_times_the_gate():
  dense, layer, x = upcycled_layer(router("switch", capacity_factor=None, eval_capacity_factor=None))
  gate = jax.nn.softmax(x @ layer.router.kernel[...]).max(-1, keepdims=True)
  assert gate.max() < 0.5
  np.testing.assert_allclose(layer(x)[0], gate * dense(x), atol=1e-5)


@pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)
def test_with_any_placement_and_activation_the_logits_are_the_dense_ones(placement):
  form = {EveryNth: "geglu", Last: "relu", Listed: "swiglu"}[type(placement)]
  dense = config("decoder", DENSE, feed_forward=form)
  model = config("decoder", sparse(placement=placement, feed_forward=form, bias=True), feed_forward=form)
  expected = logits(merge(*parameters(dense)), batch())
  np.testing.assert_allclose(logits(upcycled(dense, model), batch()), expected, atol=1e-5)
  assert np.ptp(expected) > 0.5


@pytest.mark.parametrize("form", ["gelu", "geglu"])
def test_biases_of_the_dense_network_are_those_of_every_expert(form):
  dense = config("decoder", DENSE, feed_forward=form, bias=True)
  model = config("decoder", sparse(feed_forward=form, bias=True), feed_forward=form, bias=True)
  expected = logits(merge(*parameters(dense)), batch())
  np.testing.assert_allclose(logits(upcycled(dense, model), batch()), expected, atol=1e-5)
  network = split_layers(parameters(dense)[1]["decoder"], DENSE.kinds)[0]["feed_forward"]
  assert all(np.abs(network[name]).max() > 0.5 for name in ("up_bias", "down_bias"))


def test_both_stacks_may_be_upcycled_at_once():
  dense, model = (
    config(),
    config(encoder=stack(CHOICE, feed_forward="geglu"), decoder=stack(TOP2, feed_forward="geglu")),
  )
  expected = logits(merge(*parameters(dense)), batch())
  np.testing.assert_allclose(logits(upcycled(dense, model), batch()), expected, atol=1e-5)


def test_layers_without_experts_and_all_but_the_networks_are_the_dense_ones_and_routers_those_of_a_fresh_model():
  dense, model = config("decoder", DENSE), config("decoder", sparse(bias=True))
  old, fresh = parameters(dense)[1], parameters(model, 1)[1]
  new = upcycle(old, fresh, model)
  assert_equal({**new, "decoder": new["decoder"]["norm"]}, {**old, "decoder": old["decoder"]["norm"]})
  begun, before, after = (
    split_layers(each["decoder"], of.has_experts)
    for each, of in ((fresh, model.decoder), (old, DENSE), (new, model.decoder))
  )
  assert_equal(after[:3], before[:3])
  last, network = after[3], before[3]["feed_forward"]
  assert_equal(last["attention"], before[3]["attention"])
  assert_equal(last["moe"]["router"], begun[3]["moe"]["router"])
  experts = last["moe"]["experts"]
  for expert in range(4):
    assert_equal(experts["up"][expert], network["up"])
    assert_equal(experts["gate"][expert], network["gate"])
    assert_equal(experts["down"][expert].T, network["down"])
  assert not any(leaf.any() for leaf in experts["biases"].values())


def noise_of(seed, scale=0.1):
  """By matrix, `[E, d, f]`: what noise has been added, relative to the matrix's root mean square."""
  settings = config("decoder", sparse(placement=PLACEMENTS["listed"]))
  params = upcycle(parameters(config("decoder", DENSE))[1], parameters(settings, 1)[1], settings)
  before, after = (
    leaves([layer["moe"]["experts"] for layer in split_layers(each["decoder"], settings.decoder.has_experts)[::3]])
    for each in (params, add_noise(params, settings, scale, seed))
  )
  return {name: (after[name] - before[name]) / np.sqrt(np.mean(before[name][0] ** 2)) for name in before}


def test_noise_has_the_scale_that_is_asked_for_and_differs_by_expert_and_matrix():
  found = noise_of(seed=0)
  assert len(found) == 2 * 3
  rows = np.stack([noise.reshape(4, -1) for noise in found.values()]).reshape(24, -1)  # of 384 numbers each
  np.testing.assert_allclose(rows.std(1), 0.1, rtol=0.2)
  assert np.abs(np.corrcoef(rows) - np.eye(24)).max() < 0.25


def test_noise_depends_on_its_seed_alone():
  first, again, other = noise_of(0), noise_of(0), noise_of(1)
  assert_equal(first, again)
  assert all((first[name] != other[name]).any() for name in first)


def test_noise_leaves_all_but_the_experts_matrices_as_they_are():
  settings = config("decoder", sparse(bias=True))
  params = parameters(settings)[1]
  before, after = leaves(params), leaves(add_noise(params, settings, 0.1, 0))
  moved = {path for path in before if (before[path] != after[path]).any()}
  assert moved == {path for path in before if "['experts']" in path and "biases" not in path}


OPTIMIZERS = {"adafactor": Adafactor(), "adamw": AdamW(weight_decay=0.1)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("shape", [(8, 12), (128, 160), (160, 128), (128, 128)], ids=str)
def test_the_statistics_of_a_transposed_matrix_are_transposed(optimizer, shape):
  """From 128 rows and columns on, Adafactor has statistics of rows and of columns."""

  def after_one_step(gradient):
    params, of = {"w": jnp.ones_like(gradient)}, optimizer.make({"w": 0})
    return of.update({"w": gradient}, of.init(params), params)[1]

  gradient = jax.random.normal(jax.random.key(0), shape)
  ours, theirs = leaves(transposed(after_one_step(gradient))), leaves(after_one_step(gradient.T))
  assert ours.keys() == theirs.keys()
  for name, leaf in ours.items():  # but for rounding: the sums of clipping are in another order
    np.testing.assert_allclose(leaf, theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("placement", [PLACEMENTS["every_second"], PLACEMENTS["listed"]], ids=["one_unit", "three"])
def test_statistics_are_copied_to_every_expert_and_reset_in_routers(optimizer, placement):
  dense, model = config("decoder", DENSE), config("decoder", sparse(placement=placement, bias=True))
  params = parameters(dense)[1]
  of = optimizer.make(abstract_model(dense.make, make_mesh()).stacked)
  gradients = jax.tree.map(lambda leaf: leaf + 1, params)
  _, old = jax.jit(of.update)(gradients, jax.jit(of.init)(params), params)
  fresh = optimizer.make(abstract_model(model.make, make_mesh()).stacked).init(parameters(model)[1])
  new = upcycle_statistics(old, fresh, params, model)
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, fresh)

  # Adam's first moment, or Adafactor's second: here both are as large as their parameters.
  def statistic(state):
    scale = state[1]
    return (
      scale.mu
      if isinstance(optimizer, AdamW)
      else jax.tree.map(lambda one: one[0].v, scale, is_leaf=lambda node: isinstance(node, tuple))
    )

  layers = split_layers(statistic(new)["decoder"], model.decoder.has_experts)
  for layer, before in zip(layers, split_layers(statistic(old)["decoder"], DENSE.has_experts), strict=True):
    assert_equal(layer["attention"], before["attention"])
    if "moe" in layer:
      experts, network = layer["moe"]["experts"], before["feed_forward"]
      assert np.abs(network["gate"]).min() > 0
      assert_equal(experts["gate"], jnp.stack([network["gate"]] * 4))
      assert_equal(experts["down"], jnp.stack([network["down"].T] * 4))
      assert not experts["biases"]["up"].any() and not layer["moe"]["router"]["kernel"].any()
