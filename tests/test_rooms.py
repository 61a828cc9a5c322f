"""The rooms of the house: each imports only rooms below it, and none is crowded."""

import ast
import pathlib

import pytest

import moe

ROOT = pathlib.Path(moe.__file__).parent

# From the ground up. Mains, the modules that `python -m` runs, are on top of all.
ROOMS = [
  "config",
  "config_file",
  "markdown",
  "files",
  "figures",
  "row_format",
  "routing",
  "parallel",
  "nn",
  "experts",
  "models",
  "data",
  "training",
  "evaluation",
  "convert",
  "report",
  "planning",
  "studies",
  "checks",
  "commands",
]
MAINS = {"train", "evaluate", "generate", "plan", "study", "check", "convert.__main__", "report.__main__"}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file: pathlib.Path) -> str:
  """The module's name without `moe.`; empty for the package itself."""
  return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports_of(source: str) -> set[str]:
  """What a file imports of `moe`, also inside functions, as names without `moe.`."""
  found = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports hide their room"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return {name.removeprefix("moe.") for name in found if name.startswith("moe.")}


def misplaced(module: str, source: str) -> list[str]:
  """What a module imports that is not below its room."""
  if module in MAINS:
    return [name for name in imports_of(source) if name in MAINS]
  room = module.split(".")[0]
  rooms = {name: name.split(".")[0] for name in imports_of(source)}
  below = [room, *ROOMS[: ROOMS.index(room)]]
  return sorted(name for name, other in rooms.items() if name in MAINS or other not in below)


@pytest.mark.parametrize("file", FILES, ids=lambda file: module_of(file) or "moe")
def test_a_room_imports_only_rooms_below_it(file):
  module = module_of(file)
  if not module:
    assert not imports_of(file.read_text()), "the package imports no room"
  else:
    assert not misplaced(module, file.read_text())


def test_imports_are_found_wherever_they_stand():
  source = "import moe.data\nfrom moe import nn\ndef f():\n  from moe.training.step import train_step\n"
  assert imports_of(source) == {"data", "nn", "training.step.train_step"}
  assert misplaced("models.stack", source) == ["data", "training.step.train_step"]
  assert misplaced("evaluation.continuation", source) == []
  assert misplaced("routing.top_k", "from moe.models import Batch") == ["models.Batch"]
  assert misplaced("commands", "import moe.train") == ["train"]


def test_every_room_is_in_the_list():
  rooms = {module_of(file).split(".")[0] for file in FILES} - {""}
  assert rooms <= {*ROOMS, *MAINS}
  assert {main.replace(".", "/") + ".py" for main in MAINS} <= {file.relative_to(ROOT).as_posix() for file in FILES}


@pytest.mark.parametrize(
  "folder", sorted({file.parent for file in FILES}), ids=lambda f: f.relative_to(ROOT).as_posix()
)
def test_a_folder_holds_at_most_fifteen_modules(folder):
  """But for the methods of routing, one published method a file."""
  modules = [file.name for file in folder.glob("*.py") if file.name != "__init__.py"]
  assert len(modules) <= 15 or folder == ROOT / "routing" / "methods", modules
