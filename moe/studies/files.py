"""Files of the repository that studies begin from."""

import pathlib
from typing import Any

import moe
from moe.config import require
from moe.config_file import read_config_file

REPOSITORY = pathlib.Path(moe.__file__).parent.parent


def repository_config(name: str) -> dict[str, Any]:
  """The tree of a file of `configs/`, whose own paths are made absolute.

  Raises:
    ConfigError: the package was installed without its repository.
  """
  path = REPOSITORY / "configs" / name
  wanted = "expected the file in the repository's folder; install it with: pip install -e ."
  require(path.exists(), "config", str(path), wanted)
  config = read_config_file(str(path))
  vocabulary = config["data"].get("vocabulary", "")
  if vocabulary and (REPOSITORY / vocabulary).exists():
    config["data"]["vocabulary"] = str(REPOSITORY / vocabulary)
  return config
