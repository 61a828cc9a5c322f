"""Every code block of the documents works: Python is executed, commands are read by the programs that they call.

Python blocks of a page run one after the other, as cells of a notebook do. A block whose first line is a comment with a
path, `# moe/routing/methods/top_p.py`, is that file, word for word.
"""

import configparser
import pathlib
import re
import shlex
import subprocess
import sys
import types

import pytest

from moe.routing import RouterConfig
from scripts.update_readme import measured_blocks, read_documents, updated_documents, updated_notebooks
from tests.parsed import refusals

ROOT = pathlib.Path(__file__).parents[1]
PAGES = read_documents()
EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")

# Programs of others that the pages call: nothing here can tell whether their arguments are right.
FOREIGN = {"eval", "gcloud", "hf", "jupyter", "mypy", "pytest", "python", "ruff", "source", "sphinx-build", "ssh-add"}
FOREIGN |= {"ssh-keygen", "tensorboard", "tfds"}

PLACEHOLDERS = {"$NFS": "10.0.0.2:/moe", "--study NAME": "--study base"}

WRONG = [
  ["moe.train", "--config=configs/quickstart.py", "--workdir=x", "--config.train.stepz=3"],
  ["moe.train", "--config=configs/missing.py", "--workdir=x"],
  ["moe.train", "--config=configs/finetune/rte.py", "--workdir=x", "--config.init.workdir=y", "--config.score.k=1"],
  ["moe.evaluate", "--workdir=x", "--data=source.kind=text"],
  ["moe.convert", "upcycle", "--from=x", "--workdir=y", "--config.model.encoder.moe.experts=8"],
  ["moe.study", "--study=none", "--workdir=x", "--text=y"],
  ["moe.generate", "--workdir=x", "--prompts_file=y"],
  ["moe.plan", "--config=configs/quickstart.py", "--topology=v4"],
  ["scripts.benchmarks.layer", "--sweep", "nothing"],
  ["scripts.launch.slurm", "start", "x", "--config", "configs/missing.py", "--workdir", "/x"],
]


def python_blocks(page: str) -> list[str]:
  return re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)


def shell_blocks(page: str) -> list[str]:
  """What is indented by four spaces after an empty line, outside of fences and lists."""
  page = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
  blocks = re.findall(r"(?:^|\n\n)((?:    .*\n|\n(?=    ))+)", page)
  return ["\n".join(line[4:] for line in block.splitlines()) for block in blocks]


def command_lines(page: str) -> list[str]:
  """The commands of blocks, one a line, and those that stand within the text, if they have arguments."""
  found = []
  for block in shell_blocks(page):
    joined = block.replace("\\\n", " ")
    found += [part.strip() for line in joined.splitlines() for part in re.split(r" && | \| ", line)]
  found += [" ".join(one.split()) for one in re.findall(r"`(python -m [a-z_.]+ --?[^`]*)`", page)]
  return [line for line in found if line and not line.startswith("#")]


def words_of(line: str) -> list[str]:
  for placeholder, value in PLACEHOLDERS.items():
    line = line.replace(placeholder, value)
  words = shlex.split(line, comments=True)
  words = words[: next((at for at, word in enumerate(words) if word in ("<", ">")), None)]
  while words[1:] and re.match(r"[A-Z_]+=[^$]*$", words[0]):  # a variable for the command that follows
    words.pop(0)
  return words


COMMANDS = {path: [words_of(line) for line in command_lines(text)] for path, text in PAGES.items()}


def test_every_figure_and_number_is_that_of_the_results_files():
  assert updated_documents(PAGES, measured_blocks()) == PAGES, "run python -m scripts.update_readme"


def test_notebooks_have_the_address_of_setup_cfg_and_are_small():
  assert all(path.read_text() == text for path, text in updated_notebooks().items()), "run scripts.update_readme"
  assert all(path.stat().st_size < 500_000 for path in updated_notebooks())
  index = (ROOT / "docs" / "index.md").read_text()
  assert all(f"notebooks/{path.stem}\n" in index for path in updated_notebooks())


def test_every_link_within_the_repository_leads_somewhere():
  for path, text in PAGES.items():
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for link in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
      assert ((ROOT / path).parent / link).exists(), (path, link)


@pytest.mark.parametrize("path", [path for path in PAGES if python_blocks(PAGES[path])])
def test_python_blocks_run(path, monkeypatch):
  monkeypatch.setattr(RouterConfig, "choices", dict(RouterConfig.choices))  # other tests go through all routers
  monkeypatch.chdir(ROOT)
  page = types.ModuleType("page")
  monkeypatch.setitem(sys.modules, "page", page)
  for block in python_blocks(PAGES[path]):
    if file := re.match(r"# (\S+\.py)\n", block):
      assert block[file.end() :] == (ROOT / file[1]).read_text(), file[1]
    else:
      exec(compile(block, path, "exec"), page.__dict__)


def is_ours(words: list[str]) -> bool:
  return words[:2] == ["python", "-m"] and words[2].startswith(("moe.", "scripts."))


def test_commands_have_flags_configs_and_fields_that_exist():
  """And wrong ones are found: one process reads them all."""
  shown = sorted({tuple(words[2:]) for lines in COMMANDS.values() for words in lines if is_ours(words)})
  said = refusals([*map(list, shown), *WRONG])
  assert {command: line for command, line in zip(shown, said) if line} == {}
  assert all("error: " in line for line in said[len(shown) :])


def test_other_commands_are_of_programs_extras_and_files_that_exist():
  for words in (words for lines in COMMANDS.values() for words in lines if not is_ours(words)):
    if words[:2] == ["pip", "install"]:
      for extra in re.findall(r"\.\[(.*)\]", words[-1]):
        assert set(extra.split(",")) <= set(EXTRAS["options.extras_require"]), words
    else:
      assert words[0] in FOREIGN or re.match(r"[A-Z]+=", words[0]), words
      named = [word for word in words if re.fullmatch(r"(tests|notebooks)/\S+", word)]
      assert all((ROOT / word).exists() for word in named), words


@pytest.mark.parametrize("path", [path for path in PAGES if shell_blocks(PAGES[path])])
def test_blocks_of_commands_are_bash(path):
  blocks = "\n".join(shell_blocks(PAGES[path]))
  assert subprocess.run(["bash", "-n"], input=blocks, capture_output=True, text=True).stderr == ""


def test_the_reference_has_every_method_of_routing():
  modules = {f"moe.routing.methods.{file.stem}" for file in (ROOT / "moe/routing/methods").glob("[!_]*.py")}
  pages = (ROOT / "docs" / "api" / "methods.md").read_text()
  assert set(re.findall(r"automodule:: (\S+)", pages)) == modules
