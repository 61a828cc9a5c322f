"""What training moves: parameters, the routers' own state, the optimizer's statistics, the step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from moe.config import ConfigError, require
from moe.models import ModelConfig
from moe.parallel.mesh import replicated
from moe.parallel.sharding import shard_parameters, shard_statistics
from moe.routing import RouterConfig, Site

# Arrays of routers' states, by stack ("encoder", "decoder") and name.
Stored = dict[str, dict[str, np.ndarray]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """A pytree of arrays only; the model's structure is kept apart as an `nnx.GraphDef`.

  Attributes:
    step: int32 scalar, updates made.
    params: nested dict, the model's `nnx.Param`s, float32.
    router_state: nested dict, its other variables, which training moves without a gradient.
    opt_state: Optax's.
  """

  step: jax.Array
  params: dict[str, Any]
  router_state: dict[str, Any]
  opt_state: Any


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
  """A model's structure, its parameters and its other state, the last two as plain dicts."""
  graph, params, others = nnx.split(model, nnx.Param, ...)
  return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(others)


def merge(graph: nnx.GraphDef, params: dict[str, Any], router_state: dict[str, Any]) -> nnx.Module:
  """The inverse of `split`."""
  return nnx.merge(graph, nnx.State(params), nnx.State(router_state))


def make_state(
  make_model: Callable[[nnx.Rngs], nnx.Module],
  optimizer: optax.GradientTransformation,
  seed: int,
  abstract: TrainState,
  stored: Stored,
) -> TrainState:
  """The state at step 0, in one compiled call.

  Args:
    make_model: from its random streams.
    optimizer: whose statistics to begin.
    seed: of the parameters.
    abstract: from `abstract_state`; says over what mesh arrays are divided, the same numbers on any.
    stored: from `stored_router_state`.
  """

  def init(key):
    model = make_model(nnx.Rngs(key))
    for stack, arrays in stored.items():
      getattr(model, stack).load_router_state(arrays)
    _, params, router_state = split(model)
    return TrainState(jnp.zeros((), jnp.int32), params, router_state, optimizer.init(params))

  return jax.jit(init, out_shardings=shardings_of(abstract))(keys(seed)[0])


def stored_router_state(config: ModelConfig, vocabulary: str) -> Stored:
  """What the routers of a model read from files, by stack and name.

  Args:
    config: of the model.
    vocabulary: fingerprint of the data's.

  Raises:
    ConfigError: a file is missing, or was made for another vocabulary or number of experts.
  """
  stored = {}
  for name, stack in config.stacks.items():
    if stack.moe is None:
      continue
    router, site = stack.moe.router, config.site(stack.moe)
    try:
      stored[name] = router.stored(site, vocabulary)
      _check_shapes(stored[name], router, site, sum(stack.has_experts))
    except ConfigError as error:
      raise error.under(f"model.{name}.moe.router") from None
  return stored


def _check_shapes(arrays: dict[str, np.ndarray], router: RouterConfig, site: Site, layers: int) -> None:
  """Whether every array is one layer's, or has a leading axis of all the `layers` of the stack that have experts."""
  if not arrays:
    return
  state = split(nnx.eval_shape(lambda: router.make(site, nnx.Rngs(0))))[2]
  for name, array in arrays.items():
    one = state[name].shape
    fits = array.shape in (one, (layers, *one))
    require(fits, name, array.shape, f"expected the shape {one}, or {(layers, *one)} with the MoE layers before")


def abstract_state(
  make_model: Callable[[nnx.Rngs], nnx.Module],
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  fsdp: bool = False,
) -> tuple[nnx.GraphDef, TrainState]:
  """A model's structure, and shapes, dtypes and shardings of its state: nothing is computed or allocated.

  Args:
    make_model: from its random streams.
    optimizer: whose statistics belong to the state.
    mesh: over which arrays are divided.
    fsdp: see `MeshConfig`.
  """
  graph, params, router_state = abstract_model(make_model, mesh, fsdp=fsdp)
  opt_state = jax.eval_shape(optimizer.init, params)
  opt_state = _placed(opt_state, shard_statistics(opt_state, params, mesh))
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
  return graph, TrainState(step, params, router_state, opt_state)


def abstract_model(
  make_model: Callable[[nnx.Rngs], nnx.Module], mesh: Mesh, *, fsdp: bool = False
) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
  """A model's structure, and the shapes, dtypes and shardings of what `split` gives beside it."""
  graph, params, others = nnx.split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))), nnx.Param, ...)
  placed = _placed(nnx.to_pure_dict(params), shard_parameters(params, mesh, fsdp))
  others = nnx.to_pure_dict(others)
  return graph, placed, _placed(others, jax.tree.map(lambda _: replicated(mesh), others))


def shardings_of(tree: Any) -> Any:
  """The sharding of every array, or shape with one."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _placed(shapes: Any, shardings: Any) -> Any:
  def place(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(place, shapes, shardings)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Two independent keys of a run: for the initial parameters, and for the steps."""
  first, second = jax.random.split(jax.random.key(seed))
  return first, second
