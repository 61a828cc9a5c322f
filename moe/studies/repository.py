"""The repository that a study is run from: its configs, and its commit."""

import contextlib
import pathlib
import subprocess
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


def repository_commit() -> str:
  """The commit, with a plus if files differ from it; empty where there is no repository."""

  def git(*arguments: str) -> str:
    found = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""

  with contextlib.suppress(OSError):
    return git("rev-parse", "HEAD")[:12] + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
  return ""
