"""Runs made of arrays alone, for tests of what the report shows."""

import pathlib

import numpy as np

from moe.evaluation.restore import Trained
from moe.models.count import ParameterCounts
from moe.parallel.mesh import make_mesh
from moe.report.types import Churn, Layer, Run
from moe.training.experiment import load_config
from tests.training.tiny import tiny_mapping

TOKENS = 120


def make_layer(experts: int = 4, per_token: int = 2, tokens: int = TOKENS, seed: int = 0) -> Layer:
  """Examples of 12 tokens, each with `per_token` experts at random."""
  draw = np.random.default_rng(seed)
  scores = draw.random((tokens, experts), np.float32) + 0.01
  chosen = scores.argsort(1).argsort(1) >= experts - per_token
  ids = draw.integers(0, 6, tokens).astype(np.int32)
  return Layer(ids, np.arange(tokens, dtype=np.int32) % 12, np.where(chosen, scores, 0), chosen, soft=False)


def make_run(run: str = "run", layers: dict[str, Layer] | None = None, texts: dict[int, str] | None = None, **model):
  """A run with records of 30 training steps and 3 validations; `model` overrides fields of its model section."""
  mapping = tiny_mapping(pathlib.Path("sentences.jsonl"))
  if model.get("name") == "decoder":
    del mapping["model"]["encoder"]
  mapping["model"] |= model
  layers = {"encoder/layer_0": make_layer()} if layers is None else layers
  vocabulary = {"name": "bytes", "size": 259, "fingerprint": ""}
  trained = Trained(load_config(mapping), 30, None, {}, {}, vocabulary, make_mesh())
  return Run(
    name=run,
    trained=trained,
    parameters=ParameterCounts(12_345, 678, 12_345),
    records=[_record(step, "train", layers) for step in range(1, 31)]
    + [_record(step, "validation", layers) for step in (10, 20, 30)],
    batches=[],
    layers=layers,
    churn={layer: [Churn(20, 0.5, 0.75), Churn(30, 0.25, 0.75)] for layer in layers},
    unreadable=[],
    texts=texts or {i: "abcdef"[i] for i in range(6)},
  )


def _record(step: int, kind: str, layers: dict[str, Layer]) -> dict:
  record = {"step": step, "kind": kind, "loss": 4.0 - step / 30, "bits_per_byte": 5.0 - step / 30}
  for name, layer in layers.items():
    record |= {f"{name}/dropped": 0.1, f"{name}/gate_entropy": 1.0, f"{name}/load": layer.load.tolist()}
  return record
