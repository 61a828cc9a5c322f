"""Evaluates a checkpoint: `python -m moe.evaluate --workdir runs/quickstart`.

The report names the rule by which the decoder was routed. If that rule sees later tokens, the same parameters are also
evaluated under a causal rule; the difference is what the loss owes to the future and to the change of rule.

To evaluate on other data, replace fields of the run's data section, by dotted names: `--data source.name=text --data
source.path="my/*.txt"`; or take the whole section of another config with `--config FILE`. `--mesh expert=4` divides the
model over the devices, whatever mesh it was trained on; by default each device has a copy and a share of the rows. The
result is printed, and then written to a new JSON file in the workdir.

A run on pictures has loss and accuracy. `--shots 10` adds the accuracy of a linear probe on ten pictures of each class;
`--capacities 0.5,1,2` evaluates the same parameters with these capacity factors, for a table of quality and compute.

A run with a section `score` is also scored on its tasks, and its predictions are written as JSON lines. Where labels
are hidden, as in `--split test`, there is nothing to score: the files that the servers of GLUE and SuperGLUE take are
written instead.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from absl import flags

from moe import commands
from moe.config import ConfigError, as_mapping, build, override, parse_field, require
from moe.files import AnyPath
from moe.markdown import markdown_table

commands.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: 'best', 'latest' or its step.")
_SPLIT = flags.DEFINE_string("split", "validation", "Split to evaluate on.")
_BATCHES = flags.DEFINE_integer(
  "batches", 0, "Batches to read; 0 for the whole split.", lower_bound=0, upper_bound=2**31 - 1
)
_DATA = flags.DEFINE_multi_string("data", [], "FIELD=VALUE of the data section; may be repeated.")
_SHOTS = flags.DEFINE_integer("shots", 0, "Pictures of each class for a linear probe; 0 for none.", lower_bound=0)
_CAPACITIES = flags.DEFINE_list("capacities", [], "Capacity factors to evaluate a run on pictures with.")
_MESH = flags.DEFINE_multi_string("mesh", [], "AXIS=SIZE of the mesh of devices (data, expert, model), or fsdp=true.")


def main() -> None:
  from moe.data import DataConfig
  from moe.evaluation.restore import restore
  from moe.evaluation.rules import evaluate_by_rules
  from moe.evaluation.scoring.checkpoint import answer_split
  from moe.evaluation.scoring.results import as_json, table
  from moe.files import write_numbered
  from moe.parallel.mesh import MeshConfig
  from moe.parallel.platform import start_platform
  from moe.training.experiment import load_config
  from moe.training.workdir import Workdir

  mesh = build(MeshConfig, override({}, map(parse_field, _MESH.value)), "config.mesh")
  given = load_config(_config_of_data()).data if commands.given_configs() else None
  start_platform()
  trained = restore(_WORKDIR.value, _STEP.value, mesh)
  data = given or trained.config.data
  data = build(DataConfig, override(as_mapping(data), map(parse_field, _DATA.value)), "config.data")
  split = _SPLIT.value
  pictures = data.source.gives_pictures
  capacities = [_number(text) for text in _CAPACITIES.value]
  for flag, value in (("--shots", _SHOTS.value), ("--capacities", _CAPACITIES.value)):
    require(pictures or not value, flag, value, "expected none, since the run is not on pictures")
  if capacities:
    from moe.planning.capacities import with_capacity

    for factor in capacities:
      with_capacity(trained, factor)  # refuses a wrong one before anything is evaluated
  workdir, about = Workdir(_WORKDIR.value), {"step": trained.step, "split": split, "batches": _BATCHES.value}
  answered = answer_split(trained, data, split)
  scores = [each.score() for each in answered if each.split.metric]
  hidden = len(scores) < len(answered)
  result = {"scores": as_json(scores)} if scores else {}
  if pictures:
    result |= _of_pictures(trained, data, capacities)
  elif not hidden:
    result |= evaluate_by_rules(trained, data, split, _BATCHES.value)
    print("\n".join(_lines(result, trained.step, split, trained.config.model.leaks_future)), flush=True)
  if scores:
    print("\n".join(table(scores)), flush=True)
  with _writing(workdir.predictions):
    paths = [path for each in answered for path in each.write(workdir.predictions, trained.step)]
  if result:
    about |= {"data": as_mapping(data)}
    leak = {"future_leakage": True} if trained.config.model.evaluates_on_future else {}
    path = workdir.root / "evaluations" / f"step-{trained.step}-{split}-{_digest(about)}.json"
    with _writing(path):
      paths.append(write_numbered(path, json.dumps(about | leak | result, indent=2) + "\n"))
  print("\n".join(f"written to {path}" for path in paths))


def _number(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise ConfigError("--capacities", text, "expected numbers with commas between them") from None


def _of_pictures(trained: Any, data: Any, capacities: list[float]) -> dict[str, Any]:
  """What is said of a run on pictures, printed too."""
  from moe.evaluation.linear_probe import few_shot_accuracy
  from moe.evaluation.perplexity import evaluate
  from moe.planning.capacities import at_capacities

  result = evaluate(trained, data, _SPLIT.value, _BATCHES.value)
  print(f"step {trained.step}, split {_SPLIT.value}, {result['tokens']:,} pictures")
  print(f"  accuracy  {result['accuracy']:.4f}\n  loss      {result['loss']:.4f} nats per picture", flush=True)
  if _SHOTS.value:
    result["few_shot"] = {
      "shots": _SHOTS.value,
      "accuracy": few_shot_accuracy(trained, data, _SHOTS.value, _SPLIT.value),
    }
    print(
      f"  linear probe on {_SHOTS.value} pictures of each class: accuracy {result['few_shot']['accuracy']:.4f}",
      flush=True,
    )
  if capacities:
    found = at_capacities(trained, data, _SPLIT.value, capacities, _BATCHES.value)
    rows = [
      [f"{one.factor:g}", f"{one.flops / 1e6:,.4g}", f"{one.dropped:.1%}", f"{one.loss:.4f}", f"{one.accuracy:.4f}"]
      for one in found
    ]
    heads = ["capacity factor", "MFLOP per picture", "dropped", "loss", "accuracy"]
    print("\n".join(markdown_table(heads, rows)), flush=True)
    result["capacities"] = [dataclasses.asdict(one) for one in found]
  return result


def _config_of_data() -> dict[str, Any]:
  """The config of the command line, of which only the data section is read.

  Raises:
    ConfigError: there is more than one, or an override of another section, which would be without effect.
  """
  config = commands.given_config()
  for argument in commands.given_configs()[0][1:]:
    field, _, value = argument.removeprefix("--").partition("=")
    expected = "expected a field of config.data: the run has all other sections, and this config gives only its data"
    require(field.split(".")[1] == "data", field, value, expected)
  return config


@contextlib.contextmanager
def _writing(path: AnyPath) -> Iterator[None]:
  """Raises `WorkdirError` if what is written inside cannot be."""
  from moe.training.workdir import WorkdirError

  try:
    yield
  except OSError as error:
    raise WorkdirError(f"{path} could not be written ({error.strerror}); the result stands above") from None


def _digest(about: dict[str, Any]) -> str:
  """A part of the file's name that differs between evaluations of different data."""
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]


def _lines(result: dict[str, Any], step: int, split: str, leaks: bool) -> list[str]:
  lines = [f"step {step}, split {split}, {result['tokens']:,} tokens, {result['bytes']:,} bytes of text"]
  if leaks:
    lines.append("trained with allow_future_leakage: the decoder saw later tokens in training, or sees them now")
  lines += _rule_lines(result)
  if "causal_rule" in result:
    lines += _rule_lines(result["causal_rule"])
    lines.append(f"difference: {result['leak_nats']:+.6g} nats per token under the causal rule")
  elif not result["rule"]["causal"]:
    lines.append("this router has no causal rule to compare with: there is no honest loss")
  return lines


def _rule_lines(values: dict[str, Any]) -> list[str]:
  from moe.evaluation.rules import MEANS

  rule = values["rule"]
  sees = "causal" if rule["causal"] else "sees later tokens: not a language model's loss"
  mark = "" if rule["causal"] else " (future leakage)"
  return [
    f"decoder routed by {rule['router']}, {sees}",
    *(f"  {name + mark:34}{values[name]:.6g}" for name in MEANS),
  ]


if __name__ == "__main__":
  commands.run(main)
