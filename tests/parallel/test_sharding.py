"""What the leading axes of parameters mean is said where they are made, and read from there."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from moe.models.placement import Last
from moe.parallel.sharding import name_axes, stacked_axes
from moe.routing import RouterConfig
from tests.models.tiny import ARCHITECTURES, config, router, stack


def parameters(settings) -> nnx.State:
  """Shapes of a model's parameters, with what is known of their axes."""
  return nnx.state(nnx.eval_shape(lambda: settings.make(nnx.Rngs(0))), nnx.Param)


def by_path(tree) -> dict[tuple, int]:
  return {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def of_paths(params: nnx.State) -> dict[tuple, int]:
  """The same from the names of modules: those of a scan's units and of experts add an axis each."""
  paths = (path for path, _ in nnx.to_flat_state(params))
  return {path: ("units" in path) + ("experts" in path) for path in paths}


def test_axes_that_enumerate_matrices_are_counted():
  moe = stack(router("switch"), layers=4, shared_experts=1)
  found = by_path(stacked_axes(parameters(config("decoder", moe, relative_bias="per_layer", tie_embeddings=False))))
  block = ("decoder", "units", 0, "blocks")
  expected = {
    ("embedding", "table"): 0,
    ("embedding", "head"): 0,
    ("decoder", "norm", "scale"): 0,
    (*block, 0, "attention", "query"): 1,
    (*block, 0, "attention_norm", "scale"): 1,
    (*block, 0, "bias", "table"): 1,
    (*block, 0, "feed_forward", "up"): 1,
    (*block, 1, "moe", "experts", "up"): 2,
    (*block, 1, "moe", "experts", "down"): 2,
    (*block, 1, "moe", "shared", "up"): 1,
    (*block, 1, "moe", "router", "kernel"): 1,
  }
  assert {path: found[path] for path in expected} == expected


def test_a_table_of_position_biases_that_a_stack_shares_is_no_layers():
  found = by_path(stacked_axes(parameters(config(relative_bias="shared"))))
  assert found["encoder", "bias", "table"] == found["decoder", "bias", "table"] == 0


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_for_every_parameter_the_count_is_that_of_its_path(architecture, name):
  choice = router(name)
  stacks = stack(choice, shared_experts=1), stack(choice, layers=3, placement=Last(2))
  params = parameters(config(architecture, *stacks, allow_future_leakage=True, tie_embeddings=False))
  expected = of_paths(params)
  assert set(expected.values()) == {0, 1, 2}
  assert by_path(stacked_axes(params)) == expected


def test_a_leading_axis_is_named_in_front_of_the_others():
  class Pair(nnx.Module):
    def __init__(self):
      self.named = nnx.Param(jnp.zeros((3, 4, 5)), axes=("embed", "ff"))
      self.unnamed = nnx.Param(jnp.zeros((3, 4)))
      self.state = nnx.Variable(jnp.zeros((3, 4)))

  pair = Pair()
  name_axes(pair, "layer")
  assert pair.named.get_metadata()["axes"] == ("layer", "embed", "ff")
  assert pair.unnamed.get_metadata()["axes"] == ("layer", None)
  assert "axes" not in pair.state.get_metadata()
