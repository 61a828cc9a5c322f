"""The `.npz` files that routers' states begin with: made by a script, read when a run starts."""

import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe.config import ConfigError, require
from moe.routing.router import Router


def read_arrays(field: str, path: str, names: Sequence[str], maker: str) -> dict[str, np.ndarray]:
  """The named arrays of a file.

  Args:
    field: the option that names the file, for errors.
    path: of the file.
    names: of the arrays it must hold.
    maker: the script that makes such files.

  Raises:
    ConfigError: there is no such file, or it is not one of `maker`'s.
  """
  try:
    with np.load(path) as file:
      arrays = {name: file[name] for name in names if name in file}
  except FileNotFoundError:
    raise ConfigError(field, path, f"no such file; make it with {maker}") from None
  except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
    raise ConfigError(field, path, f"is damaged or no .npz file; make it with {maker}") from None
  missing = [name for name in names if name not in arrays]
  require(not missing, field, path, f"lacks {', '.join(missing)}; make it with {maker}")
  return arrays


def write_arrays(path: str, **arrays: Any) -> None:
  """Writes a new file.

  Raises:
    FileExistsError: there is one of that name.
  """
  with open(path, "xb") as file:
    np.savez_compressed(file, **arrays)


def load_state(router: Router, arrays: Mapping[str, np.ndarray]) -> None:
  """Replaces the states of these names.

  Raises:
    ConfigError: an array does not have the state's shape.
  """
  for name, array in arrays.items():
    state = getattr(router, name)
    require(array.shape == state.shape, name, array.shape, f"expected the shape {state.shape}, that of one layer")
    state[...] = jnp.asarray(array, state.dtype)
