"""How tokens travel: to their experts and back, forward and backward, on one device and over several."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.checks.agreement import Case, on_cpu
from moe.checks.layers import BATCH, EXPERTS, LENGTH, Layer, LayerArrays
from moe.experts.dispatch import combine_slots, dispatch_slots
from moe.experts.soft import combine_soft, dispatch_soft
from moe.parallel.mesh import MeshConfig, make_mesh, replicated, rows, tracing_for
from moe.parallel.sharding import shard_parameters

# One of each way that tokens travel; a group is a sequence or the whole batch, which lies on all devices of a mesh.
KINDS: dict[str, Mapping[str, Any]] = {
  "slots of a sequence": {"name": "expert_choice", "group_size": LENGTH},
  "slots of a batch": {"name": "expert_choice", "group_size": 0},
  "slots by position": {"name": "position_grouped"},
  "ragged of a sequence": {"name": "dropless", "group_size": LENGTH},
  "ragged of a batch": {"name": "dropless", "group_size": 0},
  "ragged with room for all experts": {"name": "relu"},
  "soft of a sequence": {"name": "soft_moe"},
  "soft of a batch": {"name": "soft_moe", "group_size": BATCH * LENGTH, "slots": 4},
}
_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_DTYPES = tuple(_TOLERANCE)


def direction_cases(*, quick: bool) -> dict[str, Callable[[], Case]]:
  """Each direction alone: slots that are full, slots of which some are empty, and mixtures."""
  d = 64 if quick else 512
  routers = {"slots": {"name": "switch", "capacity_factor": 1.5}, "mixtures": {"name": "soft_moe", "slots": 2}}
  return {
    f"{kind}, {direction}, {way}, {dtype}": functools.partial(_direction, router, d, direction, way, dtype)
    for kind, router in routers.items()
    for direction in ("token to expert", "expert to token")
    for way in ("forward", "backward")
    for dtype in (_DTYPES[1:] if quick else _DTYPES)
  }


def _direction(router: Mapping[str, Any], d: int, direction: str, way: str, dtype: str) -> Case:
  layer = Layer(router, d, 8)
  with on_cpu():
    routing: Any = jax.tree.map(np.asarray, layer.apply(layer.draw(0), training=True)[1].routing)
  groups = layer.groups(training=True)
  to_experts = direction == "token to expert"

  def carry(tokens, routing):
    if to_experts:
      return _dispatch(tokens, routing)
    return combine_slots(tokens, routing, groups.size) if hasattr(routing, "token") else combine_soft(tokens, routing)

  def run(carried, cotangent, routing):
    if way == "forward":
      return carry(carried, routing)
    _, pull_back = jax.vjp(carry, carried, routing)
    d_carried, d_routing = pull_back(cotangent)
    return d_carried, [leaf for leaf in jax.tree.leaves(d_routing) if leaf.dtype == jnp.float32]

  def draw(seed):
    random = np.random.default_rng(seed)
    tokens = jax.ShapeDtypeStruct((BATCH * LENGTH // groups.size, groups.size, d), jnp.float32)
    slots = jax.eval_shape(_dispatch, tokens, routing)
    carried, carried_to = (tokens, slots) if to_experts else (slots, tokens)
    arrays = (random.normal(size=a.shape).astype(jnp.bfloat16).astype(np.float32) for a in (carried, carried_to))
    return (*arrays, routing)

  def operands(arguments):
    return (*(a.astype(dtype) for a in arguments[:2]), arguments[2])

  return Case(run, run, draw, _TOLERANCE[dtype], operands, precision="highest")


def _dispatch(tokens: jax.Array, routing: Any) -> jax.Array:
  return (dispatch_slots if hasattr(routing, "token") else dispatch_soft)(tokens, routing)


def layer_cases(*, quick: bool) -> dict[str, Callable[[], Case]]:
  """Whole layers by their kind: output, metrics, gradients and next state."""
  sizes = (32, 48) if quick else (256, 512)
  dtypes = _DTYPES[1:] if quick else _DTYPES
  return {
    f"layer, {kind}, {dtype}": functools.partial(_layer, kind, dtype, *sizes) for kind in KINDS for dtype in dtypes
  }


def mesh_cases(devices: Sequence[jax.Device]) -> dict[str, Callable[[], Case]]:
  """The same layers over all devices, along each axis of the mesh and, of four or more, along two; none for one."""
  count = len(devices)
  shapes = {(1, count, 1), (count, 1, 1), (1, 1, count)} | ({(2, count // 2, 1)} if count % 4 == 0 else set())
  fits = [shape for shape in sorted(shapes) if count > 1 and BATCH % (shape[0] * shape[1]) == EXPERTS % shape[1] == 0]
  return {
    f"layer, {kind}, data x expert x model = {' x '.join(map(str, shape))}": functools.partial(
      _layer, kind, "float32", 64, 128, make_mesh(MeshConfig(*shape), devices)
    )
    for shape in fits
    for kind in KINDS
  }


def _layer(kind: str, dtype: str, d: int, d_ff: int, mesh: Mesh | None = None) -> Case:
  layers = {name: Layer(KINDS[kind], d, d_ff, name) for name in {dtype, "float32"}}

  def value_of(y, report, cotangent):
    return jnp.vdot(y.astype(jnp.float32), cotangent), {"y": y}

  function, reference = (layers[name].both_ways(value_of) for name in (dtype, "float32"))
  about: dict[str, Any] = {"precision": "highest", "discrete": True}
  if mesh is not None:
    function, about["operands"] = _over(mesh, function), functools.partial(_placed, mesh, layers["float32"])
  return Case(function, reference, layers["float32"].draw, _TOLERANCE[dtype], **about)


def _over(mesh: Mesh, function: Callable) -> Callable:
  def run(*arguments):
    with tracing_for(mesh):
      return function(*arguments)

  return run


def _placed(mesh: Mesh, layer: Layer, arguments: tuple) -> tuple:
  a = LayerArrays(*arguments)
  places = LayerArrays(*[rows(mesh)] * len(a))
  params = shard_parameters(layer.parameters, mesh, fsdp=False)
  places = places._replace(params=params, state=jax.tree.map(lambda _: replicated(mesh), a.state), key=replicated(mesh))
  return tuple(jax.device_put(a, places))
