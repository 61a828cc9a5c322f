"""What each run is, and in what the configs of several runs differ."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from moe.config import Choice, as_mapping
from moe.report.collect import Run
from moe.report.html import Html, join, table, tag
from moe.report.layout import LEAKS, Section, run_key, series
from moe.routing import RouterConfig
from moe.training.experiment import ExperimentConfig

_ABSENT = "–"


def runs(runs: Sequence[Run]) -> Section:
  """A column a run."""
  facts = [_facts(run) for run in runs]
  rows = [[name, *(fact[name] for fact in facts)] for name in facts[0]]
  head = ["", *(run_key(runs, run) for run in runs)]
  parts = [table(head, rows, class_="facts")]
  if len(runs) > 1:
    parts += [tag("h3", "Fields in which the configs differ"), _differences(runs, head)]
  parts += [_whole_config(run) for run in runs]
  warning = [tag("p", *_warning(run), class_="warning") for run in runs if run.leaks]
  return Section("Runs", join(warning), join(parts))


def _warning(run: Run) -> list[Any]:
  what = (
    ": its decoder's router looks at later tokens, so its loss, perplexity and bits per byte are not a language"
    " model's and cannot be compared with those of a causal run."
  )
  return [tag("strong", LEAKS.upper()), f" in {run.name}", what]


def _facts(run: Run) -> dict[str, Any]:
  config, model, data = run.trained.config, run.trained.config.model, run.trained.config.data
  count = run.parameters
  layers = f"{model.encoder_layers} + {model.decoder_layers}" if model.encoder_layers else f"{model.decoder_layers}"
  return {
    "model": f"{model.architecture.replace('_', '-')}, {layers} layers, d {model.d_model}, ff {model.d_ff}",
    "parameters": f"{count.total:,}" + (f", of which experts {count.experts:,}" if count.experts else ""),
    "experts": f"{model.num_experts}, in one of {model.moe_every} layers" if model.num_experts else "none: dense",
    "encoder router": router_text(model.encoder_router) if model.encoder_layers else _ABSENT,
    "decoder router": router_text(model.decoder_router),
    "causality": _causality(run),
    "data": f"{data.source.name}, {data.objective.name}, {data.inputs_length} + {data.targets_length} tokens a row",
    "vocabulary": f"{run.trained.vocabulary['name']}, {run.trained.vocabulary['size']:,} items",
    "training": f"{config.optimizer.name}, {data.batch_size} rows a batch, {_steps(run)}",
    "last validation": _validation(run),
    "routing shown": f"checkpoint {run.trained.step:,}, {_passage(run)}",
  }


def _causality(run: Run) -> Html | str:
  if run.leaks:
    return tag("strong", f"{LEAKS}: not a language model's loss", class_="leaks")
  return f"no {LEAKS}" if run.trained.config.model.decoder_router else f"no {LEAKS}: the decoder is dense"


def _steps(run: Run) -> str:
  done, planned = max((record["step"] for record in run.records), default=0), run.trained.config.train.steps
  return f"{done:,} of {planned:,} steps recorded"


def _validation(run: Run) -> str:
  steps, loss = series(run, "validation", "loss")
  _, bits = series(run, "validation", "bits_per_byte")
  if not len(steps):
    return "none recorded"
  per_byte = f", {bits[-1]:.4f} bits per byte" if len(bits) else ""
  leak = f" ({LEAKS})" if run.leaks else ""
  first = run.trained.config.train.eval_batches
  read = f"the split's first {first} batches" if first else "the whole split"
  return f"step {steps[-1]:,}: {loss[-1]:.4f} nats per token{per_byte}{leak}, on {read}"


def _passage(run: Run) -> str:
  stacks = {name.split("/")[0]: len(layer.ids) for name, layer in run.layers.items()}
  tokens = " and ".join(f"{count:,} {stack}" for stack, count in stacks.items())
  return f"the first {tokens} tokens of the validation text" if tokens else "which has no routers"


def router_text(router: RouterConfig | None) -> str:
  """The router's name and the options that are not its defaults."""
  if router is None:
    return "none: dense"
  return _named(router.name, router.options)


def _named(name: str, options: Any) -> str:
  chosen = {
    field.name: getattr(options, field.name)
    for field in dataclasses.fields(options)
    if field.default is dataclasses.MISSING or getattr(options, field.name) != field.default
  }
  listed = ", ".join(f"{field} = {value}" for field, value in chosen.items())
  return f"{name} ({listed})" if listed else f"{name} (defaults)"


def _differences(runs: Sequence[Run], head: Sequence[Any]) -> Html:
  flat = [fields_of(run.trained.config) for run in runs]
  rows = [[name, *(fields[name] for fields in flat)] for name in flat[0] if len({f[name] for f in flat}) > 1]
  if not rows:
    return tag("p", "None: the configs are equal.")
  return table(["field", *head[1:]], rows, class_="facts")


def fields_of(config: ExperimentConfig | Any, path: str = "") -> dict[str, str]:
  """Every field of a config as text, by its dotted name; a choice is one field, since the fields of choices differ."""
  if isinstance(config, Choice):
    return {path: _named(config.name, config)}
  if isinstance(config, RouterConfig) or not dataclasses.is_dataclass(config):
    return {path: router_text(config) if path.endswith("_router") else str(config)}
  found: dict[str, str] = {}
  for field in dataclasses.fields(config):
    found |= fields_of(getattr(config, field.name), f"{path}.{field.name}" if path else field.name)
  return found


def _whole_config(run: Run) -> Html:
  text = json.dumps(as_mapping(run.trained.config), indent=2)
  return tag("details", tag("summary", f"The whole config of {run.name}"), tag("pre", text))
