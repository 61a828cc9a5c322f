"""What each run is, and in which fields the configs of several runs differ."""

import dataclasses
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.config import Choice, as_mapping
from moe.models import StackConfig
from moe.report.section import Key, Section, run_key
from moe.report.seeds import Seeds, by_config, spread_text
from moe.report.types import LEAKS, Run
from moe.routing import RouterConfig

_ABSENT = "–"


def overview_section(runs: Sequence[Run]) -> Section:
  """A column for each run."""
  facts = [_facts(run) for run in runs]
  data = {
    "leaking": [run.name for run in runs if run.trained.config.model.evaluates_on_future],
    "runs": [run_key(runs, run) for run in runs],
    "facts": [[name, *(each.get(name, _ABSENT) for each in facts)] for name in _names(facts)],
    "seeds": [_seeds_row(group) for group in by_config(runs) if len(group.runs) > 1],
    "differences": _differences(runs) if len(runs) > 1 else None,
    "configs": [(run.name, json.dumps(as_mapping(run.trained.config), indent=2)) for run in runs],
  }
  return Section("Runs", "", "overview.html", data)


def summary_lines(runs: Sequence[Run]) -> list[str]:
  """A line for each run, and for each config with several seeds: what was reached, and how fast."""
  lines = [f"{run.name}: {_validation(run)}, {_speed(run)}, wall time {_wall_time(run.seconds)}" for run in runs]
  groups = [group for group in by_config(runs) if len(group.runs) > 1]
  return lines + [
    f"{group.name}: loss {_seeds_row(group)[3]}, {_seeds_row(group)[4]} bits per byte" for group in groups
  ]


def _seeds_row(group: Seeds) -> list[str]:
  """Name, seeds, and at the last step at which all were validated, loss and bits per byte; speed and wall time."""
  seeds = ", ".join(str(run.trained.config.seed) for run in group.runs)
  steps, loss = group.series("validation", "loss")
  _, bits = group.series("validation", "bits_per_byte")
  leak = f" ({group.runs[0].leaks})" if group.runs[0].leaks else ""
  last = [
    f"{spread_text(values[:, -1])}{leak}" if values.size and len(values) > 1 else _ABSENT for values in (loss, bits)
  ]
  speeds = [run.tokens_per_second for run in group.runs if run.tokens_per_second is not None]
  times = [run.seconds for run in group.runs if run.seconds is not None]
  return [
    group.name,
    seeds,
    f"{steps[-1]:,.0f}" if len(steps) else _ABSENT,
    *last,
    spread_text(speeds, ",.0f") if len(speeds) > 1 else _ABSENT,
    _wall_time(float(np.mean(times)) if times else None),
  ]


def _speed(run: Run) -> str:
  if run.tokens_per_second is None:
    return "no speed recorded"
  waits = run.series("train", "input_wait")[1]
  wait = f", {waits.mean():.1%} of the time waiting for input" if len(waits) else ""
  return f"{run.tokens_per_second:,.0f} tokens per second{wait}"


def _wall_time(seconds: float | None) -> str:
  return "not recorded" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def _facts(run: Run) -> dict[str, str | Key]:
  config, model, data = run.trained.config, run.trained.config.model, run.trained.config.data
  count = run.parameters
  layers = " + ".join(str(stack.layers) for stack in model.stacks.values())
  return {
    "model": f"{model.name.replace('_', '-')}, {layers} layers, d {model.d_model}, ff {model.d_ff}",
    "parameters": f"{count.total:,}" + (f", of which experts {count.experts:,}" if count.experts else ""),
    **{f"{name} experts": _experts(stack) for name, stack in model.stacks.items()},
    **{f"{name} router": router_text(stack.router) for name, stack in model.stacks.items()},
    "causality": _causality(run),
    "data": f"{data.source.name}, {data.objective.name}, {data.inputs_length} + {data.targets_length} tokens per row",
    "vocabulary": f"{run.trained.vocabulary['name']}, {run.trained.vocabulary['size']:,} items",
    "training": f"{config.optimizer.name}, {data.batch_size} rows per batch, {_steps(run)}",
    "last validation": _validation(run),
    "speed": _speed(run),
    "wall time": _wall_time(run.seconds),
    "routing shown": f"checkpoint {run.trained.step:,}, {_tokens_read(run)}",
  }


def _causality(run: Run) -> str | Key:
  if run.leaks:
    return Key(f"{run.leaks}: not a language model's loss", leaks=True)
  if "decoder" not in run.trained.config.model.stacks:
    return f"no {LEAKS}: nothing is predicted from what comes before it"
  return f"no {LEAKS}" if run.trained.config.model.decoder_router else f"no {LEAKS}: the decoder is dense"


def _steps(run: Run) -> str:
  done, planned = max((record["step"] for record in run.records), default=0), run.trained.config.train.steps
  return f"{done:,} of {planned:,} steps recorded"


def _validation(run: Run) -> str:
  steps, loss = run.series("validation", "loss")
  _, bits = run.series("validation", "bits_per_byte")
  if not len(steps):
    return "none recorded"
  unit, more = "token", f", {bits[-1]:.4f} bits per byte" if len(bits) else ""
  if run.trained.config.data.source.gives_pictures:
    unit, more = "picture", f", accuracy {run.series('validation', 'accuracy')[1][-1]:.4f}"
  leak = f" ({LEAKS})" if run.trained.config.model.evaluates_on_future else ""
  batches = run.trained.config.train.eval_batches
  read = f"the split's first {batches} batches" if batches else "the whole split"
  return f"step {steps[-1]:,}: {loss[-1]:.4f} nats per {unit}{more}{leak}, on {read}"


def _tokens_read(run: Run) -> str:
  stacks = {name.split("/")[0]: len(layer.ids) for name, layer in run.layers.items()}
  tokens = " and ".join(f"{count:,} {stack}" for stack, count in stacks.items())
  return f"the first {tokens} tokens of the validation text" if tokens else "which has no routers"


def _experts(stack: StackConfig) -> str:
  if stack.moe is None:
    return "none: dense"
  layers = [index for index, has_experts in enumerate(stack.has_experts) if has_experts]
  return f"{stack.moe.num_experts} in each of layers {', '.join(map(str, layers))} of {stack.layers}"


def router_text(router: RouterConfig | None) -> str:
  """The router's name and the options that are not its defaults."""
  return "none: dense" if router is None else _choice_text(router)


def _choice_text(choice: Any) -> str:
  chosen = {
    field.name: getattr(choice, field.name)
    for field in dataclasses.fields(choice)
    if field.default is dataclasses.MISSING or getattr(choice, field.name) != field.default
  }
  listed = ", ".join(f"{field} = {value}" for field, value in chosen.items())
  return f"{choice.name} ({listed})" if listed else f"{choice.name} (defaults)"


def _differences(runs: Sequence[Run]) -> list[list[str]]:
  """The fields that differ, each with its value in every run."""
  flat = [flat_fields(run.trained.config) for run in runs]
  vocabularies: dict[str, str] = {}
  for run, fields in zip(runs, flat):  # equal ones lie in each run's folder: the first run's path stands for all
    path = fields["data.vocabulary"]
    fields["data.vocabulary"] = vocabularies.setdefault(run.trained.vocabulary["fingerprint"], path)
  rows = [[name, *(fields.get(name, _ABSENT) for fields in flat)] for name in _names(flat)]
  return [row for row in rows if len(set(row[1:])) > 1]


def _names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
  """The keys of all tables, in the order in which they first appear."""
  return list(dict.fromkeys(name for table in tables for name in table))


def flat_fields(config: Any, path: str = "") -> dict[str, str]:
  """Every field of a config as text, by its dotted name.

  A choice is one field, since the fields of choices differ, unless it holds sections itself, as a model does.
  """
  if not dataclasses.is_dataclass(config):
    return {path: str(config)}
  holds_sections = any(dataclasses.is_dataclass(getattr(config, field.name)) for field in dataclasses.fields(config))
  if isinstance(config, Choice) and not holds_sections:
    return {path: _choice_text(config)}
  found: dict[str, str] = {f"{path}.name": config.name} if isinstance(config, Choice) else {}
  for field in dataclasses.fields(config):
    found |= flat_fields(getattr(config, field.name), f"{path}.{field.name}" if path else field.name)
  return found
