"""Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055): a dense model becomes one with experts.

Every expert begins as a copy of its layer's dense feed-forward network; the router is new. Where a token's gates sum to
1 and all its choices find a slot, the model computes what the dense one does: `renormalize=True`, and a capacity that
drops nothing. With other gates a MoE layer gives the dense output times their sum.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from moe.convert.layers import Tree, join_layers, split_layers
from moe.models import ModelConfig
from moe.nn.streams import named_streams


def upcycle_params(dense: Tree, fresh: Tree, model: ModelConfig) -> Tree:
  """The dense model's parameters as those of `model`; or likewise an optimizer's statistics.

  Args:
    dense: of a model that differs in having no experts.
    fresh: those that `model` begins with, of which the routers' are taken; biases of experts are 0 where the dense
      network has none.
    model: with experts as wide as the dense network, and no shared ones.
  """
  result = dict(dense)
  for name, stack in model.stacks.items():
    if stack.moe is None:
      continue
    olds = split_layers(dense[name], dataclasses.replace(stack, moe=None).kinds)
    news = split_layers(fresh[name], stack.kinds)
    layers = [_with_experts(old, new, stack.moe.num_experts) if "moe" in new else old for old, new in zip(olds, news)]
    result[name] = dense[name] | join_layers(layers, stack.kinds)
  return result


def upcycle_statistics(dense: Any, fresh: Any, params: Tree, model: ModelConfig) -> Any:
  """The optimizer's state after the dense run as one of `model`: each expert's statistics are the dense network's.

  Those of routers and of biases are new. What the state holds once, such as Adam's count of updates, is the dense
  run's.

  Args:
    dense: Optax's state after the dense run.
    fresh: the one that the same optimizer begins with for `model`.
    params: the dense model's, whose keys tell trees of statistics from other dicts.
    model: as in `upcycle_params`.
  """

  def is_like_params(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == params.keys()

  def moved(old: Any, new: Any) -> Any:
    return upcycle_params(old, new, model) if is_like_params(old) else old

  return jax.tree.map(moved, dense, fresh, is_leaf=is_like_params)


def add_noise(params: Tree, model: ModelConfig, scale: float, seed: int) -> Tree:
  """Parameters with Gaussian noise in every expert's matrices, so that the copies differ.

  Args:
    params: of `model`.
    model: the config.
    scale: standard deviation of the noise, relative to the root mean square of each matrix.
    seed: of the noise. That of a matrix depends on its stack, layer and name only.
  """
  of, result = named_streams(nnx.Rngs(seed)), dict(params)

  def noisy(matrix: jax.Array, name: str) -> jax.Array:  # [E, d, f]
    size = jnp.sqrt(jnp.mean(jnp.square(matrix), axis=(-2, -1), keepdims=True))
    return matrix + scale * size * jax.random.normal(of(f"noise/{name}").params(), matrix.shape)

  for name, stack in model.stacks.items():
    layers = split_layers(params[name], stack.kinds)
    for number, layer in enumerate(layers):
      if "moe" in layer:
        experts = layer["moe"]["experts"]
        matrices = {each: noisy(experts[each], f"{name}/{number}/{each}") for each in experts if each != "biases"}
        layers[number] = layer | {"moe": layer["moe"] | {"experts": experts | matrices}}
    result[name] = params[name] | join_layers(layers, stack.kinds)
  return result


def _with_experts(dense: Tree, fresh: Tree, num_experts: int) -> Tree:
  """A dense block's variables as those of a MoE block."""

  def copies(node: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_experts, *leaf.shape)), node)

  network, moe = dict(dense["feed_forward"]), fresh["moe"]
  biases = {name: copies(network.pop(f"{name}_bias")) for name in ("up", "gate", "down") if f"{name}_bias" in network}
  matrices = {name: copies(transposed(node) if name == "down" else node) for name, node in network.items()}
  experts = jax.tree.map(jnp.zeros_like, moe["experts"]) | matrices | ({"biases": biases} if biases else {})
  others = {name: node for name, node in dense.items() if name != "feed_forward"}
  return others | {"moe": moe | {"experts": experts}}


def transposed(node: Any) -> Any:
  """A matrix, or an optimizer's statistics of one: an expert's last matrix lies the other way round."""
  if isinstance(node, optax.FactoredState):
    # Of a matrix that is not square, `v_row` belongs to the shorter side, whichever that is.
    row, column = (node.v_row, node.v_col) if node.v_row.shape != node.v_col.shape else (node.v_col, node.v_row)
    return node._replace(v_row=row, v_col=column, v=transposed(node.v))
  if hasattr(node, "ndim"):
    return node.T if node.ndim == 2 else node
  return jax.tree.map(transposed, node, is_leaf=lambda each: isinstance(each, optax.FactoredState))
