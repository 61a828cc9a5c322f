"""Parts of a model, named by the paths of their arrays: which learn at a rate of their own, and which do not learn.

A path is such as `encoder/units/0/blocks/1/moe/router/kernel`. Layers that are computed in a scan share their arrays,
and so their paths.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.models import ModelConfig
from moe.routing.router import expert_axes

# Says of the array of a path whether it stays as it is: all of it, or where a mask that fits it is True.
Frozen = Callable[[str], bool | np.ndarray]


def path_of(keys: tuple[Any, ...]) -> str:
  """The path that JAX's keys of nested dicts stand for."""
  return "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of nested dicts, or of several of them, by path."""
  return {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}


def expert_axes_of(model: ModelConfig, paths: Iterable[str]) -> dict[str, int]:
  """Of those arrays of a model that have an axis of experts, which one it is; routed experts, and what routers have."""
  of_routers = {
    name: expert_axes(stack.moe.router, model.site(stack.moe)) for name, stack in model.stacks.items() if stack.moe
  }
  found = {}
  for path in paths:
    stack, *keys = path.split("/")
    of_layer = {"experts": 0, "router": of_routers.get(stack, {}).get(keys[-1]) if keys else None}
    axis = of_layer.get(keys[keys.index("moe") + 1]) if "moe" in keys else None
    if axis is not None:
      found[path] = 1 + axis  # the first is that of layers
  return found


def scale_part(name: str, factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of the parameters in every part of a model that is called so, such as `router`."""

  def scaled(keys: tuple[Any, ...], update: jax.Array) -> jax.Array:
    return update * factor if name in path_of(keys).split("/") else update

  return optax.stateless(lambda updates, _: jax.tree.map_with_path(scaled, updates))


def without(tree: Any, is_frozen: Callable[[str], bool], path: str = "") -> Any:
  """Nested dicts without the leaves whose paths are frozen."""
  paths = {key: f"{path}/{key}".removeprefix("/") for key in tree}
  return {
    key: without(value, is_frozen, paths[key]) if isinstance(value, dict) else value
    for key, value in tree.items()
    if isinstance(value, dict) or not is_frozen(paths[key])
  }


def freeze(inner: optax.GradientTransformation, is_frozen: Callable[[str], bool]) -> optax.GradientTransformation:
  """`inner` for all parameters whose paths are not frozen; the others have no statistics, and updates of 0."""

  def init(params):
    return inner.init(without(params, is_frozen))

  def update(updates, state, params):
    found, state = inner.update(without(updates, is_frozen), state, without(params, is_frozen))
    moved = by_path(found)
    return jax.tree.map_with_path(lambda keys, leaf: moved.get(path_of(keys), jnp.zeros_like(leaf)), updates), state

  return optax.GradientTransformation(init, update)


def stop_gradients(params: Any, frozen: Frozen) -> Any:
  """The parameters, as constants where they are frozen: what is frozen as a whole has no gradient computed."""
  return keep_frozen(jax.lax.stop_gradient(params), params, frozen)


def keep_frozen(old: Any, new: Any, frozen: Frozen) -> Any:
  """`new`, but `old` where it is frozen."""

  def kept(keys: tuple[Any, ...], before: jax.Array, after: jax.Array) -> jax.Array:
    mask = frozen(path_of(keys))
    return jnp.where(mask, before, after) if isinstance(mask, np.ndarray) else before if mask else after

  return jax.tree.map_with_path(kept, old, new)
