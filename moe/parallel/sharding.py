"""How parameters and optimizer statistics are sharded over the mesh: by the names of their axes.

A layer names the axes of a parameter when it creates it: `nnx.Param(value, axes=("embed", "heads"))`. The table below
maps these names to axes of the mesh. Stacking layers puts the axis "layer" in front. Axes without a name are not
sharded, and neither is a parameter without names. FSDP divides the rows of a matrix, which products sum over: its first
axis, or where metadata says `rows=1`, of a matrix that is used transposed, its second.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.parallel.kept import gathered
from moe.parallel.mesh import ROW_AXES, current_mesh, row_shards

Axes = tuple[str | None, ...]

# "embed", the model's width, is sharded by FSDP only.
_MESH_AXIS = {"expert": "expert", "heads": "model", "ff": "model", "vocab": "model", "embed": None}

# The axes that FSDP divides rows over, in this order: gradients are summed over the first one, then shards over the
# other, and TPUs have no sum into shards over `data`, whose devices are far apart, for large matrices.
_SHARDS = ("expert", "data")

# Axes that enumerate matrices instead of belonging to one.
_STACKED = ("layer", "expert")

# Shards of fewer rows do not fill a bfloat16 tile, and the TPU compiler does not all-gather them: it sums matrices of
# full size that are zero outside each device's shard.
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
    params: the model's variables (arrays or shapes), whose `axes` name their axes.
    mesh: with the axes of `moe.parallel.mesh`.
    fsdp: see `MeshConfig`.
  """

  def sharding(variable: nnx.Variable) -> NamedSharding:
    return NamedSharding(mesh, _spec(variable, mesh, fsdp))

  return nnx.to_pure_dict(nnx.map_state(lambda _, variable: sharding(variable), params))


def shard_statistics(statistics: Any, params: Any, mesh: Mesh) -> Any:
  """A `NamedSharding` for every array of an optimizer's state.

  An array that belongs to a parameter and has its shape, or lacks one of its axes (Adafactor's means over the rows or
  columns of a matrix), is sharded like the parameter; all others are replicated.

  Args:
    statistics: Optax's state (shapes), holding trees of dicts with the keys of `params`.
    params: nested dict of shapes with the shardings of `shard_parameters`.
    mesh: the one they are sharded over.
  """
  found = {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

  def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    keys = _keys(path)
    if keys not in found:
      return NamedSharding(mesh, PartitionSpec())
    shape, spec = found[keys].shape, found[keys].sharding.spec
    spec = (*spec, *[None] * (len(shape) - len(spec)))
    names = [getattr(entry, "name", None) for entry in path]
    for kept in _kept_axes(shape, leaf.shape, by_column="v_col" in names):
      return NamedSharding(mesh, PartitionSpec(*(spec[axis] for axis in kept)))
    return NamedSharding(mesh, PartitionSpec())

  return jax.tree_util.tree_map_with_path(sharding, statistics)


def name_shards(model: nnx.Module, mesh: Mesh, fsdp: bool) -> None:
  """Says of every parameter over which axes of the mesh FSDP divides its rows: as `shards`, which `product` reads."""
  for _, variable in nnx.iter_graph(model):
    if isinstance(variable, nnx.Param):
      variable.set_metadata(shards=_shards(variable, mesh) if fsdp else ())


def product(x: jax.Array, param: nnx.Param, dtype: jnp.dtype) -> jax.Array:
  """`x [N, d] @ param [d, f]` in `dtype`, the rows of `x` divided over the mesh's row axes, if there is one.

  Of a matrix that FSDP divides, each device gathers the shards to multiply its rows, and its part of the gradient is
  summed into shards again: left to the compiler, sums of whole matrices would travel.
  """
  mesh, about = current_mesh(), param.get_metadata()
  shards = about.get("shards", ())
  if mesh is None or not shards or len(x) % row_shards(mesh):
    return x.astype(dtype) @ whole(param, dtype)
  rows, columns = (_MESH_AXIS.get(name) for name in about["axes"][-2:])

  def on_device(x: jax.Array, matrix: jax.Array) -> jax.Array:
    y = x @ gather_shards(matrix, shards, 0)
    return y if rows is None else jax.lax.psum(y, rows)

  divided = ((rows,) if rows else ()) + shards
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(PartitionSpec(ROW_AXES, rows), PartitionSpec(divided, columns)),
    out_specs=PartitionSpec(ROW_AXES, columns),
  )(x.astype(dtype), param[...].astype(dtype))


def gather_shards(matrix: jax.Array, shards: tuple[str, ...], axis: int) -> jax.Array:
  """Inside `jax.shard_map`, the matrix whose `axis` is divided over the mesh axes `shards`.

  One mesh axis after the other: over several at once, the TPU compiler sums matrices of full size that are zero outside
  each device's shard.
  """
  for name in reversed(shards):
    matrix = jax.lax.all_gather(matrix, name, axis=axis, tiled=True)
  return gathered(matrix) if shards else matrix


def whole(param: nnx.Param, dtype: jnp.dtype) -> jax.Array:
  """A dense parameter as computation uses it: in `dtype`, and on a mesh with its FSDP shards gathered.

  Stated explicitly, because the compiler might otherwise move activations instead.
  """
  value = param[...].astype(dtype)
  if current_mesh() is None:
    return value
  axes = param.get_metadata()["axes"][-value.ndim :]  # in a scan over layers, those of one layer
  return jax.lax.with_sharding_constraint(value, PartitionSpec(*map(_MESH_AXIS.get, axes)))


def _spec(variable: nnx.Variable, mesh: Mesh, fsdp: bool) -> PartitionSpec:
  entries: list[Any] = [_MESH_AXIS.get(name) for name in variable.get_metadata().get("axes", ())]
  if fsdp and (shards := _shards(variable, mesh)):
    rows = _rows(variable)
    entries[rows] = (() if entries[rows] is None else (entries[rows],)) + shards
  return PartitionSpec(*(entry or None for entry in entries))


def _rows(variable: nnx.Variable) -> int | None:
  """Which axis of a parameter has the rows of its matrices; None if it has none."""
  about = variable.get_metadata()
  named = [index for index, name in enumerate(about.get("axes", ())) if name is not None and name not in _STACKED]
  return named[about.get("rows", 0)] if named else None


def _shards(variable: nnx.Variable, mesh: Mesh) -> tuple[str, ...]:
  """The axes of the mesh over which FSDP divides the rows of a parameter, beside the one they have anyway."""
  if (rows := _rows(variable)) is None:
    return ()
  axes = variable.get_metadata()["axes"]
  own = _MESH_AXIS.get(axes[rows])
  size = variable.shape[rows] // (1 if own is None else mesh.shape[own])
  return _dividing(size, ("data",) if "expert" in axes else _SHARDS, mesh)


def _dividing(size: int, axes: tuple[str, ...], mesh: Mesh) -> tuple[str, ...]:
  """All axes, else the largest one, that divide `size` evenly into shards that are not too small; else none."""
  alone = sorted(((axis,) for axis in axes), key=lambda one: -mesh.shape[one[0]])
  for choice in (axes, *alone):
    parts = math.prod(mesh.shape[axis] for axis in choice)
    if size % parts == 0 and size // parts >= _FEWEST_ROWS:
      return choice
  return ()


def _kept_axes(whole: tuple[int, ...], part: tuple[int, ...], by_column: bool) -> Iterator[tuple[int, ...]]:
  """The axes of a parameter that a statistic of shape `part` has, likeliest first; none if it is not one of them."""
  every = tuple(range(len(whole)))
  if part == whole:
    yield every
  # For a square matrix both are possible: Optax averages row statistics over the last axis.
  last = len(whole) - 1
  for dropped in (last - 1, last) if by_column else (last, last - 1):
    kept = tuple(axis for axis in every if axis != dropped)
    if part == tuple(whole[axis] for axis in kept):
      yield kept


def _keys(path: tuple[Any, ...]) -> tuple[Any, ...]:
  return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
