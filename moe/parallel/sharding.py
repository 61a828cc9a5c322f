"""Where parameters and optimizer statistics lie on the mesh: from the names of their axes.

A layer names the axes of its parameters where it makes them: `nnx.Param(value, axes=("embed", "heads"))`. Here is the
one table that says what a name means. Stacking layers puts the axis "layer" in front. Axes without a name are not
divided, and neither is a parameter without names.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.parallel.mesh import ROW_AXES, current_mesh

Axes = tuple[str | None, ...]

# "embed", the model's width, is not divided for its own sake.
_MESH_AXIS = {"expert": "expert", "heads": "model", "ff": "model", "vocab": "model", "embed": None}

# Axes that enumerate matrices instead of belonging to one.
_STACKED = ("layer", "expert")

# Of fewer rows, which do not fill a tile of bfloat16, the TPU's compiler makes no all-gather: it adds up the whole
# matrix from zeros and a part on every device.
_FEWEST_ROWS = 16


def name_axes(module: nnx.Module, leading: str) -> None:
  """Says of every parameter that it has a leading axis of this name; axes that had no name until now get None."""
  for _, variable in nnx.iter_graph(module):
    if isinstance(variable, nnx.Param):
      unnamed = (None,) * (variable.ndim - 1)
      variable.set_metadata(axes=(leading, *(variable.get_metadata().get("axes") or unnamed)))


def stacked_axes(params: nnx.State) -> dict[str, Any]:
  """How many axes of each parameter enumerate matrices (of layers, of experts), in a nested dict of the parameters."""

  def count(variable: nnx.Variable) -> int:
    return sum(name in _STACKED for name in variable.get_metadata().get("axes", ()))

  return nnx.to_pure_dict(nnx.map_state(lambda _, variable: count(variable), params))


def shard_parameters(params: nnx.State, mesh: Mesh, fsdp: bool) -> dict[str, Any]:
  """A `NamedSharding` for every parameter, in a nested dict like `nnx.to_pure_dict(params)`.

  Args:
    params: the model's variables (arrays or only shapes), whose `axes` name their axes.
    mesh: with the axes of `moe.parallel.mesh`.
    fsdp: see `MeshConfig`.
  """

  def place(variable: nnx.Variable) -> NamedSharding:
    axes = variable.get_metadata().get("axes", ())
    return NamedSharding(mesh, _spec(axes, variable.shape, mesh, fsdp))

  return nnx.to_pure_dict(nnx.map_state(lambda _, variable: place(variable), params))


def shard_statistics(statistics: Any, params: Any, mesh: Mesh) -> Any:
  """A `NamedSharding` for every array of an optimizer's state.

  What belongs to a parameter, an array of the same shape or one with an axis less (Adafactor's means over the rows or
  columns of a matrix), lies as the parameter does; all else is on every device.

  Args:
    statistics: Optax's state (shapes), holding trees of dicts with the keys of `params`.
    params: nested dict of shapes with the shardings of `shard_parameters`.
    mesh: the same.
  """
  found = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    keys = _keys(path)
    if keys not in found:
      return NamedSharding(mesh, PartitionSpec())
    shape, spec = found[keys].shape, found[keys].sharding.spec
    spec = (*spec, *[None] * (len(shape) - len(spec)))
    names = [getattr(entry, "name", None) for entry in path]
    for kept in _kept_axes(shape, leaf.shape, by_column="v_col" in names):
      return NamedSharding(mesh, PartitionSpec(*(spec[axis] for axis in kept)))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(place, statistics)


def whole(param: nnx.Param, dtype: jnp.dtype) -> jax.Array:
  """A dense parameter as computation uses it: in `dtype`, and on a mesh with the parts that FSDP made put together.

  Said here, because left to itself the compiler may rather move activations.
  """
  value = param[...].astype(dtype)
  if current_mesh() is None:
    return value
  axes = param.get_metadata()["axes"][-value.ndim :]  # in a scan over layers, those of one layer
  return jax.lax.with_sharding_constraint(value, PartitionSpec(*map(_MESH_AXIS.get, axes)))


def _spec(axes: Axes, shape: tuple[int, ...], mesh: Mesh, fsdp: bool) -> PartitionSpec:
  """FSDP divides the rows of a matrix: parts of few columns would fill no tile either."""
  entries: list[Any] = [_MESH_AXIS.get(name) for name in axes]
  matrix = [index for index, name in enumerate(axes) if name is not None and name not in _STACKED]
  if fsdp and matrix:
    rows = matrix[0]
    divided = () if entries[rows] is None else (entries[rows],)
    among = ("data",) if "expert" in axes else ROW_AXES
    entries[rows] = divided + _dividing(shape[rows] // math.prod(mesh.shape[axis] for axis in divided), among, mesh)
  return PartitionSpec(*(entry or None for entry in entries))


def _dividing(size: int, axes: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
  """The axes together, else the larger one that cuts `size` evenly into parts that are not too small, else none."""
  alone = sorted(((axis,) for axis in axes), key=lambda one: -mesh.shape[one[0]])
  for choice in (axes, *alone):
    parts = math.prod(mesh.shape[axis] for axis in choice)
    if size % parts == 0 and size // parts >= _FEWEST_ROWS:
      return choice
  return ()


def _kept_axes(whole: tuple[int, ...], part: tuple[int, ...], by_column: bool) -> Iterator[tuple[int, ...]]:
  """The axes of a parameter that a statistic of shape `part` has, likeliest first; none if it is of another kind."""
  every = tuple(range(len(whole)))
  if part == whole:
    yield every
  # Of a square matrix both are possible: Optax averages its row statistics over the last axis.
  last = len(whole) - 1
  for dropped in (last - 1, last) if by_column else (last, last - 1):
    kept = tuple(axis for axis in every if axis != dropped)
    if part == tuple(whole[axis] for axis in kept):
      yield kept


def _keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
  return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
