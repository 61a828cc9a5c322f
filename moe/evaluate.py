"""Evaluates a checkpoint: `python -m moe.evaluate --workdir runs/quickstart`.

The report names the rule by which the decoder was routed. If that rule sees later tokens, the same parameters are also
evaluated under a causal rule; the difference is what the loss owes to the future and to the change of rule.

To evaluate on other data, replace fields of the run's data section, by dotted names: `--data source.name=text --data
source.path="my/*.txt"`; or take the whole section of another config with `--config FILE`. `--mesh expert=4` divides the
model over the devices, whatever mesh it was trained on; by default each device has a copy and a share of the rows. The
result is printed, and written to a new JSON file in the workdir.
"""

import hashlib
import json
from typing import Any

from absl import flags

from moe import commands
from moe.config import as_mapping, build, override, parse_field

commands.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: 'best', 'latest' or its step.")
_SPLIT = flags.DEFINE_string("split", "validation", "Split to evaluate on.")
_BATCHES = flags.DEFINE_integer("batches", 0, "Batches to read; 0 for the whole split.", lower_bound=0)
_DATA = flags.DEFINE_multi_string("data", [], "FIELD=VALUE of the data section; may be repeated.")
_MESH = flags.DEFINE_multi_string("mesh", [], "AXIS=SIZE of the mesh of devices (data, expert, model), or fsdp=true.")


def main() -> None:
  from moe.data import DataConfig
  from moe.evaluation.restore import restore
  from moe.evaluation.rules import evaluate_by_rules
  from moe.parallel.mesh import MeshConfig
  from moe.training.experiment import load_config
  from moe.training.workdir import Workdir, write_new

  mesh = build(MeshConfig, override({}, map(parse_field, _MESH.value)), "config.mesh")
  trained = restore(_WORKDIR.value, _STEP.value, mesh)
  data = load_config(commands.given_config()).data if commands.given_configs() else trained.config.data
  data = build(DataConfig, override(as_mapping(data), map(parse_field, _DATA.value)), "config.data")
  split = _SPLIT.value
  result = evaluate_by_rules(trained, data, split, _BATCHES.value)
  about = {"step": trained.step, "split": split, "batches": _BATCHES.value, "data": as_mapping(data)}
  leak = {"future_leakage": True} if trained.config.model.leaks_future else {}
  folder = Workdir(_WORKDIR.value).root / "evaluations"
  folder.mkdir(exist_ok=True)
  name = f"step-{trained.step}-{split}-{_digest(about)}"
  number, path = 1, folder / f"{name}.json"
  while path.exists():
    number += 1
    path = folder / f"{name}-{number}.json"
  write_new(path, json.dumps(about | leak | result, indent=2) + "\n")
  print("\n".join(_lines(result, trained.step, split, bool(leak))))
  print(f"written to {path}")


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
