"""Equal seeds are equal weights: models that differ in one part begin with the same parameters in all others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.experts import MoE
from moe.models.placement import EveryNth, Listed
from moe.nn.linear import KernelInit
from moe.routing import RouterConfig
from tests.models.tiny import batch, config, router, stack


def by_path(params):
  return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}


@functools.cache
def layer(name):
  return by_path(nnx.state(MoE(8, 4, 12, name, shared_experts=1, vocab_size=20, rngs=nnx.Rngs(3)), nnx.Param))


@functools.cache
def parameters(settings):
  """By path, the parameters that a model begins with."""
  return by_path(jax.jit(lambda: nnx.state(settings.make(nnx.Rngs(3)), nnx.Param))())


def assert_equal_outside_routers(ours, theirs):
  ours, theirs = ({p: leaf for p, leaf in each.items() if "router" not in p} for each in (ours, theirs))
  assert ours.keys() == theirs.keys()
  for path, leaf in ours.items():
    np.testing.assert_array_equal(leaf, theirs[path], err_msg=str(path))


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_with_every_router_a_layer_has_the_experts_of_expert_choice(name):
  assert ("experts", "up") in layer(name) and ("shared", "up") in layer(name)
  beside = {path for path in layer(name) if path[0] == "free"}  # experts that cost nothing
  ours = {path: leaf for path, leaf in layer(name).items() if path not in beside}
  assert_equal_outside_routers(ours, layer("expert_choice"))


@pytest.mark.parametrize("name", ["hash", "rl_r"])
def test_models_that_differ_in_the_router_begin_with_the_same_other_parameters(name):
  ours, theirs = (
    parameters(config("decoder", stack(router(each), placement=EveryNth(1)), allow_future_leakage=True))
    for each in (name, "expert_choice")
  )
  assert_equal_outside_routers(ours, theirs)


def of_layers(settings, *path):
  """`[layers, ...]`: a parameter of every block that has it, first layer first, in a model of any placement."""
  network = settings.make(nnx.Rngs(3))
  found = []
  for unit, repeats in zip(network.encoder.units, network.encoder.repeats, strict=True):
    for i in range(repeats):
      for block in unit.blocks:
        value = functools.reduce(lambda part, name: part and getattr(part, name), path, block)
        found.append(None if value is None else np.asarray(value[...][i]))
  return found


def test_a_layer_begins_the_same_wherever_the_experts_are():
  models = [
    config(encoder=stack(chosen, 4, **placement))
    for chosen, placement in [
      (None, {}),
      (router("expert_choice"), {"placement": EveryNth(2)}),
      (router("expert_choice"), {"placement": Listed((0, 1, 3))}),
    ]
  ]
  queries = [of_layers(model, "attention", "query") for model in models]
  np.testing.assert_array_equal(queries[0], queries[1])
  np.testing.assert_array_equal(queries[0], queries[2])
  assert len({query.tobytes() for query in queries[0]}) == 4
  dense, every_2, listed = (of_layers(model, "feed_forward", "up") for model in models)
  np.testing.assert_array_equal(every_2[2], dense[2])
  np.testing.assert_array_equal(listed[2], dense[2])
  experts = [of_layers(model, "moe", "experts", "up") for model in models[1:]]
  np.testing.assert_array_equal(experts[0][1], experts[1][1])
  np.testing.assert_array_equal(experts[0][3], experts[1][3])


def test_dense_parts_do_not_depend_on_the_other_stack():
  one, other = (parameters(config(encoder=encoder)) for encoder in (stack(), stack(router("switch"), 4)))
  for path, leaf in one.items():
    if path[0] != "encoder":
      np.testing.assert_array_equal(leaf, other[path], err_msg=str(path))


def test_a_gate_and_a_shared_expert_leave_the_other_matrices_as_they_were():
  plain, gated = (
    parameters(config("decoder", stack(router("switch"), feed_forward=form, shared_experts=shared), feed_forward=form))
    for form, shared in (("gelu", 0), ("geglu", 1))
  )
  assert len(gated) > len(plain)
  for path, leaf in plain.items():
    np.testing.assert_array_equal(leaf, gated[path], err_msg=str(path))


def test_what_dropout_drops_does_not_depend_on_the_router():
  """With experts that give nothing, all that is left of the routers is the random numbers they take."""

  @functools.partial(jax.jit, static_argnums=0)
  def logits(graph, variables):
    return nnx.merge(graph, variables)(batch(), training=True, key=jax.random.key(1)).logits

  def silenced(name):
    network = config("decoder", router(name), allow_future_leakage=True, dropout=0.5).make(nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(network)):
      if path[-2:] == ("experts", "down"):
        leaf[...] = jnp.zeros_like(leaf[...])
    return logits(*nnx.split(network))

  expected = silenced("expert_choice")
  for name in ("gshard", "reinforce", "noisy_top_k"):
    np.testing.assert_array_equal(silenced(name), expected, err_msg=name)


def test_the_initial_scale_is_that_of_all_matrices_but_embeddings_position_biases_and_routers():
  wide = {"d_model": 64, "d_ff": 64, "num_heads": 8}
  whole, small = (
    parameters(config("decoder", stack(router("switch"), shared_experts=1), **wide, **init))
    for init in ({}, {"kernel_init": KernelInit(0.1, "truncated_normal")})
  )
  ratio = {path: small[path].std() / whole[path].std() for path in whole if whole[path].std() > 0}
  scaled = {path for path in ratio if {"attention", "feed_forward", "experts", "shared"} & set(path)}
  assert len(scaled) == 2 * 4 + 3 + 2 + 2
  for path, found in ratio.items():
    assert found == pytest.approx(0.1**0.5 if path in scaled else 1.0, rel=0.05), path
