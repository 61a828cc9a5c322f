"""Reads command lines as the programs themselves would, and runs none: `refusals([["moe.train", "--config=x"]])`.

One process imports what the programs share, and forks for every command line.
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 600  # seconds, which only a hanging process takes


def refusals(commands: list[list[str]]) -> list[str]:
  """What each command line, a module and its arguments, is refused with; "" where it is accepted."""
  with tempfile.TemporaryDirectory() as folder:
    (pathlib.Path(folder) / "configs").symlink_to(ROOT / "configs")  # and nothing that commands write
    done = subprocess.run(
      [sys.executable, "-W", "ignore", "-m", "tests.parsed"],
      input=json.dumps(commands),
      cwd=folder,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
      timeout=TIMEOUT,
    )
  return json.loads(done.stdout)


def _train() -> None:
  from moe import commands
  from moe.training.experiment import load_config

  load_config(_complete(commands.given_config()))


def _plan() -> None:
  from moe.config_file import read_config
  from moe.plan import _TOPOLOGY, commands
  from moe.planning.topology import parse_slice
  from moe.training.experiment import load_config

  parse_slice(_TOPOLOGY.value)
  for one in commands.given_configs():
    load_config(_complete(read_config(one)))


def _evaluate() -> None:
  from moe.config import build, override, parse_field
  from moe.evaluate import _DATA, _MESH
  from moe.parallel.mesh import MeshConfig
  from moe.training.experiment import load_config

  build(MeshConfig, override({}, map(parse_field, _MESH.value)), "config.mesh")
  load_config({**_small(), "data": override(_small()["data"], map(parse_field, _DATA.value))})


def _convert() -> None:
  from moe.config import override
  from moe.config_file import fields_of
  from moe.convert.__main__ import commands
  from moe.training.experiment import load_config

  sparse = [("model.decoder.moe", {"num_experts": 2, "router": "loss_free"})]  # for what makes more of experts
  given = fields_of([field for one in commands.given_configs() for field in one[1:]])
  load_config(override(_small(), [*sparse, *given]))


def _study() -> None:
  from moe.config import require
  from moe.studies import Study
  from moe.studies.arms import given_arm, parse_arm
  from moe.studies.running.engine import parse_runner
  from moe.study import _ARM, _BUDGET, _DATA_DIR, _PRETRAINED, _REPORT, _RUNNER, _STUDY, _TEXT

  name, budget = _STUDY.value, _BUDGET.value
  require(name in Study.choices, "--study", name, "expected a study")
  require(budget in Study.choices[name].budgets, "--budget", budget, "expected one of the study's")
  reads, text = Study.choices[name].reads, bool(_TEXT.value or _PRETRAINED.value or _REPORT.value)
  require(text or "text" not in reads, "--text", "", "expected a text")
  require(bool(_DATA_DIR.value) or "data_dir" not in reads, "--data_dir", "", "expected a folder")
  parse_runner(_RUNNER.value)
  for arm in _ARM.value:
    given_arm(*parse_arm(arm))


# What a main does with the flags before anything that takes long; others have their flags parsed.
_CHECKS = {"moe.train": _train, "moe.plan": _plan, "moe.evaluate": _evaluate, "moe.convert": _convert}
_CHECKS |= {"moe.study": _study}


def _small() -> dict:
  from configs import t5_mini

  return t5_mini.get_config().to_dict()


def _complete(tree: dict) -> dict:
  """A config with the model and the vocabulary that a pretrained run would hand down, if it begins from one."""
  if not tree.get("init"):
    return tree
  source = _small()
  inherited = {field: source["data"][field] for field in ("vocabulary", "extra_ids")}
  model = tree.get("model", {})
  same = model.get("name", source["model"]["name"]) == source["model"]["name"]
  return {**tree, "model": source["model"] | model if same else model, "data": tree["data"] | inherited}


def _read(name: str, arguments: list[str]) -> None:
  """Ends the process as the command would end, if it did nothing."""
  from moe import commands

  if name.startswith("moe."):
    package = importlib.util.find_spec(name).submodule_search_locations
    importlib.import_module(f"{name}.__main__" if package else name)
    commands.run(_CHECKS.get(name, lambda: None), [name, *arguments])
    return
  main = importlib.import_module(name).main
  if name.startswith("scripts.launch."):
    sys.argv = [name, *arguments, "--dry-run"]
  else:
    parse = commands.Parser.parse_args
    commands.Parser.parse_args = lambda parser, given=None: (parse(parser, given), sys.exit())
    sys.argv = [name, *arguments]
  commands.run_script(main)


def _refusal(name: str, arguments: list[str]) -> str:
  with tempfile.TemporaryFile() as written:
    child = os.fork()
    if child == 0:
      code = 1
      try:
        for descriptor in (1, 2):
          os.dup2(written.fileno(), descriptor)
        _read(name, arguments)
        code = 0
      except SystemExit as end:
        code = end.code or 0
      except BaseException:
        sys.excepthook(*sys.exc_info())
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    written.seek(0)
    said = written.read().decode()
  helped = "--help" in arguments and not said.startswith("error:")  # absl then ends with code 1
  return "" if status == 0 or helped else said or f"exit status {status}"


if __name__ == "__main__":
  for heavy in ("moe.training.experiment", "moe.studies", "moe.planning.topology"):
    importlib.import_module(heavy)

  given = json.load(sys.stdin)
  print(json.dumps([_refusal(name, arguments) for name, *arguments in given]))
