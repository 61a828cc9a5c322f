"""Parts of a model by the paths of their arrays, such as `encoder/units/0/blocks/1/moe/router/kernel`.

Layers that are computed in a scan share their arrays, which the path of a unit names together.
"""

from typing import Any

import jax


def path_of(keys: tuple[Any, ...]) -> str:
  """The path that JAX's keys of nested dicts stand for."""
  return "/".join(str(key.key) for key in keys if isinstance(key, jax.tree_util.DictKey))


def by_path(tree: Any) -> dict[str, Any]:
  """The leaves of nested dicts, or of several of them, by path."""
  return {path_of(keys): leaf for keys, leaf in jax.tree.leaves_with_path(tree)}
