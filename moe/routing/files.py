"""The `.npz` files that initialise router state: made by a script, read when a run starts."""

import os
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
    field: the config field that names the file, for errors.
    path: of the file.
    names: of the arrays it must contain.
    maker: the script that makes such files.

  Raises:
    ConfigError: there is no such file, or `maker` did not make it.
  """
  try:
    with np.load(os.path.expanduser(path)) as file:
      arrays = {name: file[name] for name in names if name in file}
  except FileNotFoundError:
    raise ConfigError(field, path, f"expected a file made by {maker}, found none") from None
  except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
    raise ConfigError(field, path, f"expected an .npz file made by {maker}, not a damaged or other file") from None
  missing = [name for name in names if name not in arrays]
  require(not missing, field, path, f"expected a file made by {maker}, with {', '.join(missing)}")
  return arrays


def write_arrays(path: str, **arrays: Any) -> None:
  """Writes a new file.

  Raises:
    FileExistsError: a file of that name exists.
  """
  with open(path, "xb") as file:
    np.savez_compressed(file, **arrays)


def load_state(router: Router, arrays: Mapping[str, np.ndarray]) -> None:
  """Sets the router's states of these names.

  Raises:
    ConfigError: an array does not have the state's shape.
  """
  for name, array in arrays.items():
    state = getattr(router, name)
    require(array.shape == state.shape, name, array.shape, f"expected one layer's shape {state.shape}")
    state[...] = jnp.asarray(array, state.dtype)
