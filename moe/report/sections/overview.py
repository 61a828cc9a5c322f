"""What each run is, and in which fields the configs of several runs differ."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from moe.config import Choice, as_mapping
from moe.report.section import Key, Section, run_key
from moe.report.types import LEAKS, Run
from moe.routing import RouterConfig


def overview_section(runs: Sequence[Run]) -> Section:
  """A column for each run."""
  facts = [_facts(run) for run in runs]
  data = {
    "leaking": [run.name for run in runs if run.leaks],
    "runs": [run_key(runs, run) for run in runs],
    "facts": [[name, *(each[name] for each in facts)] for name in facts[0]],
    "differences": _differences(runs) if len(runs) > 1 else None,
    "configs": [(run.name, json.dumps(as_mapping(run.trained.config), indent=2)) for run in runs],
  }
  return Section("Runs", "", "overview.html", data)


def _facts(run: Run) -> dict[str, str | Key]:
  config, model, data = run.trained.config, run.trained.config.model, run.trained.config.data
  count = run.parameters
  layers = f"{model.encoder_layers} + {model.decoder_layers}" if model.encoder_layers else f"{model.decoder_layers}"
  return {
    "model": f"{model.architecture.replace('_', '-')}, {layers} layers, d {model.d_model}, ff {model.d_ff}",
    "parameters": f"{count.total:,}" + (f", of which experts {count.experts:,}" if count.experts else ""),
    "experts": f"{model.num_experts} in one of every {model.moe_every} layers" if model.num_experts else "none: dense",
    "encoder router": router_text(model.encoder_router) if model.encoder_layers else "–",
    "decoder router": router_text(model.decoder_router),
    "causality": _causality(run),
    "data": f"{data.source}, {data.objective}, {data.inputs_length} + {data.targets_length} tokens per row",
    "vocabulary": f"{run.trained.vocabulary['name']}, {run.trained.vocabulary['size']:,} items",
    "training": f"{config.optimizer.name}, {data.batch_size} rows per batch, {_steps(run)}",
    "last validation": _validation(run),
    "routing shown": f"checkpoint {run.trained.step:,}, {_tokens_read(run)}",
  }


def _causality(run: Run) -> str | Key:
  if run.leaks:
    return Key(f"{LEAKS}: not a language model's loss", leaks=True)
  return f"no {LEAKS}" if run.trained.config.model.decoder_router else f"no {LEAKS}: the decoder is dense"


def _steps(run: Run) -> str:
  done, planned = max((record["step"] for record in run.records), default=0), run.trained.config.train.steps
  return f"{done:,} of {planned:,} steps recorded"


def _validation(run: Run) -> str:
  steps, loss = run.series("validation", "loss")
  _, bits = run.series("validation", "bits_per_byte")
  if not len(steps):
    return "none recorded"
  per_byte = f", {bits[-1]:.4f} bits per byte" if len(bits) else ""
  leak = f" ({LEAKS})" if run.leaks else ""
  batches = run.trained.config.train.eval_batches
  read = f"the split's first {batches} batches" if batches else "the whole split"
  return f"step {steps[-1]:,}: {loss[-1]:.4f} nats per token{per_byte}{leak}, on {read}"


def _tokens_read(run: Run) -> str:
  stacks = {name.split("/")[0]: len(layer.ids) for name, layer in run.layers.items()}
  tokens = " and ".join(f"{count:,} {stack}" for stack, count in stacks.items())
  return f"the first {tokens} tokens of the validation text" if tokens else "which has no routers"


def router_text(router: RouterConfig | None) -> str:
  """The router's name and the options that are not its defaults."""
  if router is None:
    return "none: dense"
  return _choice_text(router.name, router.options)


def _choice_text(name: str, options: Any) -> str:
  chosen = {
    field.name: getattr(options, field.name)
    for field in dataclasses.fields(options)
    if field.default is dataclasses.MISSING or getattr(options, field.name) != field.default
  }
  listed = ", ".join(f"{field} = {value}" for field, value in chosen.items())
  return f"{name} ({listed})" if listed else f"{name} (defaults)"


def _differences(runs: Sequence[Run]) -> list[list[str]]:
  """The fields that differ, each with its value in every run."""
  flat = [flat_fields(run.trained.config) for run in runs]
  return [[name, *(fields[name] for fields in flat)] for name in flat[0] if len({each[name] for each in flat}) > 1]


def flat_fields(config: Any, path: str = "") -> dict[str, str]:
  """Every field of a config as text, by its dotted name; a choice is one field, since the fields of choices differ."""
  if isinstance(config, Choice):
    return {path: _choice_text(config.name, config)}
  if isinstance(config, RouterConfig) or not dataclasses.is_dataclass(config):
    return {path: router_text(config) if path.endswith("_router") else str(config)}
  found: dict[str, str] = {}
  for field in dataclasses.fields(config):
    found |= flat_fields(getattr(config, field.name), f"{path}.{field.name}" if path else field.name)
  return found
