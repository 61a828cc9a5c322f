"""A stack's variables layer by layer, whatever the units that it is scanned in (`moe.models.stack`)."""

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moe.models.stack import units_of

# Nested dicts as `moe.training.state.split` makes them: parameters, routers' states, or an optimizer's statistics of
# them. At the end of each path there is an array, or the arrays of one parameter's statistics.
Tree = dict[Any, Any]


def split_layers(stack: Tree, kinds: Sequence[Hashable]) -> list[Tree]:
  """The variables of every block, first layer first, without the axis of repeats; {} for a block that has none.

  Args:
    stack: the variables of one stack.
    kinds: for each layer what it is (`StackConfig.kinds`).
  """
  layers = []
  for number, (unit, repeats) in enumerate(units_of(kinds)):
    blocks = stack.get("units", {}).get(number, {}).get("blocks", {})
    for repeat in range(repeats):
      for place in range(len(unit)):
        layers.append(jax.tree.map(lambda leaf, at=repeat: leaf[at], blocks.get(place, {})))
  return layers


def join_layers(layers: Sequence[Tree], kinds: Sequence[Hashable]) -> Tree:
  """The inverse of `split_layers`: the part `units` of a stack's variables."""
  units, first = {}, 0
  for number, (unit, repeats) in enumerate(units_of(kinds)):
    blocks = {}
    for place in range(len(unit)):
      alike = layers[first + place : first + repeats * len(unit) : len(unit)]
      if alike[0]:
        blocks[place] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alike)
    if blocks:
      units[number] = {"blocks": blocks}
    first += repeats * len(unit)
  return {"units": units} if units else {}
