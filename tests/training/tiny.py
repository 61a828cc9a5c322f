"""A run small enough for a test: a two-block encoder-decoder with expert choice on the bytes of a few sentences."""

import pathlib
import random

from moe.training.experiment import ExperimentConfig, load_config
from moe.training.metrics_file import read_metrics

_TEXT = "the cat sat on a mat while seven grey owls watched from an old oak near the silent mill"


def write_corpus(path: pathlib.Path, documents: int = 60, seed: int = 0) -> pathlib.Path:
  """Sentences of few words as JSON lines, one document per line."""
  draw = random.Random(seed)
  lines = (" ".join(draw.choices(_TEXT.split(" "), k=draw.randint(5, 30))) for _ in range(documents))
  path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
  return path


def tiny_stack(router: dict | None = None, layers: int = 2, num_experts: int = 4) -> dict:
  """The section of a stack with experts in every second layer; dense without a router."""
  return {"layers": layers, "moe": router and {"num_experts": num_experts, "router": router}}


def tiny_decoder(mapping: dict, router: dict | None = None, **fields) -> dict:
  """The model section of a tiny mapping as that of a decoder with this router."""
  model = {name: value for name, value in mapping["model"].items() if name != "encoder"}
  return model | {"name": "decoder", "decoder": tiny_stack(router)} | fields


def tiny_mapping(corpus: pathlib.Path, *, streams: int = 1, **train) -> dict:
  """The config tree of a run of 12 steps; `train` replaces fields of its training section."""
  return {
    "seed": 3,
    "model": {
      "name": "encoder_decoder",
      "vocab_size": 259,
      "d_model": 16,
      "d_ff": 32,
      "num_heads": 2,
      "d_head": 8,
      "encoder": tiny_stack({"name": "expert_choice", "capacity_factor": 2.0}),
      "decoder": tiny_stack(),
    },
    "data": {
      "source": {"name": "text", "path": str(corpus), "validation_fraction": 0.2},
      "vocabulary": "bytes",
      "extra_ids": 0,
      "inputs_length": 16,
      "targets_length": 16,
      "batch_size": 4,
      "streams": streams,
    },
    "optimizer": {"learning_rate": 0.03, "schedule": {"name": "constant", "warmup_steps": 2}},
    "train": {"steps": 12, "log_every": 1, "eval_every": 6, "eval_batches": 2, "checkpoint_every": 4} | train,
  }


def tiny_config(corpus: pathlib.Path, *, streams: int = 1, **train) -> ExperimentConfig:
  return load_config(tiny_mapping(corpus, streams=streams, **train))


def changed(corpus, path, value):
  """The tiny config with one field, named by its path, set to another value."""
  mapping = tiny_mapping(corpus)
  *sections, name = path.split(".")
  inner = mapping
  for section in sections:
    inner = inner[section]
  inner[name] = value
  return mapping


class Interrupt(Exception):
  pass


def interrupt_after(step):
  """A hook that ends the run as abruptly as an exception can."""

  def interrupt(run, info):
    if info.step == step:
      raise Interrupt

  return interrupt


def losses(workdir: pathlib.Path) -> dict[tuple[str, int], float]:
  """Of all records of a run, by kind and step."""
  return {(record["kind"], record["step"]): record["loss"] for record in read_metrics(workdir / "metrics.jsonl")}
