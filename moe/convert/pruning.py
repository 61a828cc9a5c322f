"""Fewer experts: those that are used most, with their part of the router."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe.config import require
from moe.convert.layers import Tree, join_layers, split_layers
from moe.convert.merging import Chosen
from moe.models import ModelConfig
from moe.routing import RouterConfig, Site
from moe.routing.router import expert_axes, router_shapes


def most_used(load: np.ndarray, keep: int) -> np.ndarray:
  """Int `[L, K]`, each layer's `keep` experts with the highest load `[L, E]`, ascending; at a tie the first."""
  return np.sort(np.argsort(-load, axis=1, kind="stable")[:, :keep], axis=1)


def prune_experts(variables: Tree, model: ModelConfig, chosen: Chosen) -> Tree:
  """Parameters, or routers' states, with the chosen experts alone.

  The scores of the chosen experts stay what they were. A softmax over fewer of them is larger; and `deepseek_v3`
  divides those that stay into other groups.

  Args:
    variables: of `model`.
    model: its routers are such as `router_axes` accepts.
    chosen: the experts that stay in each MoE layer of each stack with experts.
  """
  result = dict(variables)
  for name in chosen.keys() & variables.keys():
    stack = model.stacks[name]
    axes, experts = router_axes(stack.router, model.site(stack.moe)), iter(chosen[name])
    layers = split_layers(variables[name], stack.kinds)
    layers = [
      layer | {"moe": _pruned(layer["moe"], next(experts), axes)} if "moe" in layer else layer for layer in layers
    ]
    result[name] = variables[name] | join_layers(layers, stack.kinds)
  return result


def router_axes(router: RouterConfig, site: Site) -> dict[str, int | None]:
  """The axis of experts in each of a router's arrays, by name; None for an array that has none.

  Raises:
    ConfigError: experts are not scored by the columns of one matrix, so that none can be removed.
  """
  linear = router_shapes(router, site).get("kernel") == (site.d_model, site.num_experts)
  require(linear, "name", router.name, "expected a router that scores experts by the columns of one matrix")
  return expert_axes(router, site)


def _pruned(moe: Tree, experts: np.ndarray, axes: Mapping[str, int | None]) -> Tree:
  """A MoE layer's variables with some of its experts."""

  def of_router(name: str, leaf: jax.Array) -> jax.Array:
    axis = axes[name]
    return leaf if axis is None else jnp.take(leaf, experts, axis=axis)

  parts: dict[str, Any] = {}
  if "router" in moe:
    parts["router"] = {name: of_router(name, leaf) for name, leaf in moe["router"].items()}
  if "experts" in moe:
    parts["experts"] = jax.tree.map(lambda leaf: leaf[experts], moe["experts"])
  return moe | parts
