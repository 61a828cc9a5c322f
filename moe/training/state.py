"""What training moves: parameters, the routers' own state, the optimizer's statistics, the step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx


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
  make_model: Callable[[nnx.Rngs], nnx.Module], optimizer: optax.GradientTransformation, seed: int, sharding: Any
) -> tuple[nnx.GraphDef, TrainState]:
  """The structure of a model and its state at step 0, in one compiled call."""
  graph, _, _ = split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))

  def init(key):
    _, params, router_state = split(make_model(nnx.Rngs(key)))
    return TrainState(jnp.zeros((), jnp.int32), params, router_state, optimizer.init(params))

  return graph, jax.jit(init, out_shardings=sharding)(keys(seed)[0])


def abstract_state(
  make_model: Callable[[nnx.Rngs], nnx.Module], optimizer: optax.GradientTransformation, sharding: Any
) -> tuple[nnx.GraphDef, TrainState]:
  """The same, shapes only: nothing is computed or allocated."""
  graph, params, router_state = split(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
  step = jax.ShapeDtypeStruct((), jnp.int32)
  state = TrainState(step, params, router_state, jax.eval_shape(optimizer.init, params))
  return graph, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """Two independent keys of a run: for the initial parameters, and for the steps."""
  first, second = jax.random.split(jax.random.key(seed))
  return first, second
