"""Experts that are removed leave those that stay as they were, with their part of the router."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.convert.layers import split_layers
from moe.convert.pruning import most_used, prune_experts, router_axes
from moe.models import MoEConfig, StackConfig
from moe.models.placement import EveryNth, Listed
from moe.routing import RouterConfig
from moe.training.state import merge, split
from tests.convert.test_upcycling import assert_equal, parameters
from tests.models.tiny import batch, config, logits, router, stack

# Their experts have no column of a matrix of their own: codes of bits, tables, centroids, slots.
WITHOUT_COLUMNS = {"dselect_k", "hash", "k_means", "soft_moe"}


def test_the_most_used_experts_are_those_with_the_highest_load_and_at_a_tie_the_first():
  load = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.9, 0.1]])
  assert most_used(load, 2).tolist() == [[1, 3], [0, 1], [2, 3]]
  assert most_used(load, 1).tolist() == [[1], [0], [2]]


def test_experts_that_no_token_chooses_may_go_and_no_logit_changes():
  """Biases of -100 leave two experts of each layer a probability of 0."""
  top_1 = router("token_choice", top_k=1, capacity_factor=None, eval_capacity_factor=None, router_bias=True)
  model = config("decoder", stack(top_1, layers=3, placement=Listed((0, 2)), bias=True))
  fewer = config("decoder", stack(top_1, layers=3, placement=Listed((0, 2)), bias=True, num_experts=2))
  graph, params, state = parameters(model)
  chosen = {"decoder": np.array([[1, 2], [0, 3]])}
  unused = iter([[0, 3], [1, 2]])
  for unit in params["decoder"]["units"].values():
    for block in unit["blocks"].values():
      if "moe" in block:
        biases = block["moe"]["router"]
        biases["kernel_bias"] = biases["kernel_bias"].at[:, jnp.array(next(unused))].set(-100.0)
  before = logits(merge(graph, params, state), batch())
  pruned = prune_experts(params, model, chosen)
  np.testing.assert_allclose(logits(merge(parameters(fewer)[0], pruned, state), batch()), before, atol=1e-5)


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_a_router_without_some_experts_has_the_shapes_of_one_made_for_fewer_or_is_refused_by_name(name):
  def model(experts):
    moe = MoEConfig(num_experts=experts, router=RouterConfig.choices[name](), placement=EveryNth(1))
    return config("decoder", StackConfig(layers=1, moe=moe), allow_future_leakage=True)

  many, few = model(8), model(4)
  if name in WITHOUT_COLUMNS:
    with pytest.raises(ConfigError, match=f"name = '{name}': expected a router that scores experts by the columns"):
      router_axes(many.decoder.router, many.site(many.decoder.moe))
    return
  chosen = {"decoder": np.array([[0, 2, 5, 7]])}
  before, expected = (split(nnx.eval_shape(lambda m=m: m.make(nnx.Rngs(0))))[1:] for m in (many, few))
  pruned = [jax.eval_shape(lambda tree: prune_experts(tree, many, chosen), tree) for tree in before]
  shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (pruned, list(expected))]
  assert shapes[0] == shapes[1]


def test_what_stays_are_the_chosen_experts_columns_biases_and_states():
  loss_free = router("loss_free", top_k=1)
  model = config("decoder", stack(loss_free, layers=2, placement=EveryNth(1)))
  _, params, state = parameters(model)
  state = jax.tree.map(lambda leaf: jnp.arange(float(leaf.size)).reshape(leaf.shape), state)  # [layers, E]
  chosen = {"decoder": np.array([[0, 2], [1, 3]])}
  new, learnt = prune_experts(params, model, chosen), prune_experts(state, model, chosen)
  before, after, bias = (split_layers(tree["decoder"], (True, True)) for tree in (params, new, learnt))
  for layer, numbers in enumerate(chosen["decoder"]):
    old, kept = before[layer]["moe"], after[layer]["moe"]
    assert_equal(kept["router"]["kernel"], old["router"]["kernel"][:, numbers])
    assert_equal(kept["experts"]["up"], old["experts"]["up"][numbers])
    assert_equal(bias[layer]["moe"]["router"]["bias"], jnp.array(numbers + 4.0 * layer))
