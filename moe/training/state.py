"""The state of training: parameters, the routers' own state, the optimizer's statistics, the step."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from moe.config import in_section, require
from moe.models import ModelConfig
from moe.parallel.mesh import replicated
from moe.parallel.sharding import name_shards, shard_parameters, shard_statistics, stacked_axes
from moe.routing import RouterConfig, Site
from moe.training.optimization.optimizer import StackedAxes

# Arrays of routers' states, by stack ("encoder", "decoder") and name.
Stored = dict[str, dict[str, np.ndarray]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """A pytree of arrays only; the model's structure is kept separately as an `nnx.GraphDef`.

  Attributes:
    step: int32 scalar, updates made.
    params: nested dict, the model's `nnx.Param`s, float32.
    router_state: nested dict, its other variables, which training updates without a gradient.
    opt_state: Optax's.
  """

  step: jax.Array
  params: dict[str, Any]
  router_state: dict[str, Any]
  opt_state: Any


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
  """A model's structure, its parameters and its other state, the last two as plain dicts."""
  graph, *states = nnx.split(model, nnx.Param, ...)
  params, others = map(nnx.to_pure_dict, states)
  return graph, params, others


def merge(graph: nnx.GraphDef, params: dict[str, Any], router_state: dict[str, Any]) -> nnx.Module:
  """The inverse of `split`."""
  return nnx.merge(graph, nnx.State(params), nnx.State(router_state))


def make_init(
  make_model: Callable[[nnx.Rngs], nnx.Module],
  optimizer: optax.GradientTransformation,
  abstract: TrainState,
  stored: Stored,
) -> Callable[[jax.Array], TrainState]:
  """The compiled function from a key, the first of `keys`, to the state at step 0.

  Args:
    make_model: from its random streams.
    optimizer: whose statistics are initialised.
    abstract: from `abstract_state`; its shardings divide the arrays, and the numbers are the same on any mesh.
    stored: from `stored_router_state`.
  """

  def init(key):
    model = make_model(nnx.Rngs(key))
    for stack, arrays in stored.items():
      getattr(model, stack).load_router_state(arrays)
    _, params, router_state = split(model)
    return TrainState(jnp.zeros((), jnp.int32), params, router_state, optimizer.init(params))

  return jax.jit(init, out_shardings=shardings_of(abstract))


def stored_router_state(config: ModelConfig, vocabulary: str) -> Stored:
  """What the routers of a model read from files, by stack and name.

  Args:
    config: of the model.
    vocabulary: fingerprint of the data's vocabulary.

  Raises:
    ConfigError: a file is missing, or was made for another vocabulary or number of experts.
  """
  stored: Stored = {}
  for name, stack in config.stacks.items():
    if stack.moe is None:
      continue
    router, site = stack.moe.router, config.site(stack.moe)
    with in_section(f"config.model.{name}.moe.router"):
      stored[name] = router.stored(site, vocabulary)
      _check_shapes(stored[name], router, site, sum(stack.has_experts))
  return stored


def _check_shapes(arrays: dict[str, np.ndarray], router: RouterConfig, site: Site, layers: int) -> None:
  """Requires every array to be one layer's, or to have a leading axis of all the stack's `layers` with experts."""
  if not arrays:
    return
  state = split(nnx.eval_shape(lambda: router.make(site, nnx.Rngs(0))))[2]
  for name, array in arrays.items():
    one = state[name].shape
    fits = array.shape in (one, (layers, *one))
    require(fits, name, array.shape, f"expected the shape {one}, or {(layers, *one)} with an axis of MoE layers")


@dataclasses.dataclass(frozen=True)
class AbstractModel:
  """A model of which nothing has been computed or allocated.

  Attributes:
    graph: its structure.
    params, router_state: shapes, dtypes and shardings of what `split` returns beside it.
    stacked: how many leading axes of each parameter enumerate matrices (`stacked_axes`).
  """

  graph: nnx.GraphDef
  params: dict[str, Any]
  router_state: dict[str, Any]
  stacked: StackedAxes


def abstract_model(make_model: Callable[[nnx.Rngs], nnx.Module], mesh: Mesh, *, fsdp: bool = False) -> AbstractModel:
  """The model that `make_model` makes from its random streams, divided over a mesh; `fsdp` as in `MeshConfig`."""
  model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
  name_shards(model, mesh, fsdp)
  graph, *states = nnx.split(model, nnx.Param, ...)
  params, others = states
  router_state = nnx.to_pure_dict(others)
  return AbstractModel(
    graph,
    _with_shardings(nnx.to_pure_dict(params), shard_parameters(params, mesh, fsdp)),
    _with_shardings(router_state, jax.tree.map(lambda _: replicated(mesh), router_state)),
    stacked_axes(params),
  )


def abstract_state(model: AbstractModel, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state of training a model: nothing is computed or allocated."""
  opt_state = jax.eval_shape(optimizer.init, model.params)
  opt_state = _with_shardings(opt_state, shard_statistics(opt_state, model.params, mesh))
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
  return TrainState(cast(jax.Array, step), model.params, model.router_state, opt_state)


def shardings_of(tree: Any) -> Any:
  """The sharding of every array, or shape with one."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
  def with_sharding(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(with_sharding, shapes, shardings)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Two independent keys of a run: for the initial parameters, and for the steps."""
  first, second = jax.random.split(jax.random.key(seed))
  return first, second
