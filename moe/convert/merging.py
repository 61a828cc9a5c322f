"""Means: of the experts of a layer, which make a dense feed-forward network, and of several checkpoints."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.convert.layers import Tree, join_layers, split_layers
from moe.convert.upcycling import transposed
from moe.models import ModelConfig

# By stack, int `[MoE layers, K]`: numbers of experts, ascending in each layer.
Chosen = Mapping[str, np.ndarray]


def merge_experts(params: Tree, model: ModelConfig, chosen: Chosen | None = None) -> Tree:
  """The parameters of a dense model, whose feed-forward networks have the means of the experts' matrices.

  After upcycling without noise they are the dense model's again, bit for bit. In general a network of mean matrices is
  not the mean of the experts' outputs: experts that have grown apart give a poor one, to be trained further.

  Args:
    params: of `model`.
    model: its experts are as wide as its dense networks, with biases if these have some; without shared experts.
    chosen: the experts that count in each MoE layer; None for all.
  """
  result = dict(params)
  for name, stack in model.stacks.items():
    if stack.moe is None:
      continue
    every = np.tile(np.arange(stack.moe.num_experts), (sum(stack.has_experts), 1))
    experts = iter(every if chosen is None else chosen[name])
    layers = [_dense(layer, experts) for layer in split_layers(params[name], stack.kinds)]
    result[name] = params[name] | join_layers(layers, dataclasses.replace(stack, moe=None).kinds)
  return result


def _dense(layer: Tree, experts) -> Tree:
  """A block with the mean of the experts that come next; as it is if it has none."""
  if "moe" not in layer:
    return layer
  numbers = next(experts)

  def mean(arrays: jax.Array) -> jax.Array:  # [E, d, f] to [d, f], [E, f] to [f]
    first = arrays[numbers[0]]
    return first + (arrays[numbers] - first).mean(0)  # exact where all are equal, whatever their number

  matrices = dict(layer["moe"]["experts"])
  biases = {f"{name}_bias": mean(each) for name, each in matrices.pop("biases", {}).items()}
  network = {name: mean(each) for name, each in matrices.items()} | biases
  others = {name: node for name, node in layer.items() if name != "moe"}
  return others | {"feed_forward": network | {"down": transposed(network["down"])}}


def mean_of(trees: Iterable[Any]) -> Any:
  """The arithmetic mean of parameters of equal shapes, summed in float64; one tree at a time is read."""
  total, count = None, 0
  for tree in trees:
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
    total, count = exact if total is None else jax.tree.map(np.add, total, exact), count + 1
  return jax.tree.map(lambda leaf: jnp.asarray(leaf / count, jnp.float32), total)
