"""Where parameters and optimizer statistics lie on the mesh: from the names of their axes.

A layer names the axes of its parameters where it makes them: `nnx.Param(value, axes=("embed", "heads"))`. Here is the
one table that says what a name means. Leading axes without a name (stacked layers) are not divided, and neither is a
parameter without names.
"""

from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.parallel.mesh import ROW_AXES

Axes = tuple[str | None, ...]

# "embed", the model's width, is divided by FSDP alone.
_MESH_AXIS = {"expert": "expert", "heads": "model", "ff": "model", "vocab": "model"}


def shard_parameters(params: nnx.State, mesh: Mesh, fsdp: bool) -> dict[str, Any]:
  """A `NamedSharding` for every parameter, in a nested dict like `nnx.to_pure_dict(params)`.

  Args:
    params: the model's variables (arrays or only shapes), whose `axes` name their trailing axes.
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


def _spec(axes: Axes, shape: tuple[int, ...], mesh: Mesh, fsdp: bool) -> PartitionSpec:
  unnamed = [None] * (len(shape) - len(axes))
  fsdp_axes = ("data",) if "expert" in axes else ROW_AXES
  entries = []
  for name, size in zip(axes, shape[len(unnamed) :], strict=True):
    if name == "embed":
      entries.append(_dividing(size, fsdp_axes, mesh) if fsdp else None)
    else:
      entries.append(_MESH_AXIS[name] if name else None)
  return PartitionSpec(*unnamed, *entries)


def _dividing(size: int, axes: tuple[str, ...], mesh: Mesh) -> tuple[str, ...] | str | None:
  """All the axes together, if their devices divide `size`; else the first that does by itself."""
  whole = 1
  for axis in axes:
    whole *= mesh.shape[axis]
  if size % whole == 0:
    return axes
  return next((axis for axis in axes if size % mesh.shape[axis] == 0), None)


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
