"""Does straight-through train stochastic gates best? Bengio, Léonard and Courville 2013, section 5."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moe.config import require
from moe.data.formats.prepared import prepared_examples
from moe.data.sources.image_dataset import ImageDatasetConfig
from moe.markdown import markdown_table
from moe.row_format import PictureFormat
from moe.studies.claims.experiments.gates import FROZEN, GATES, Digits, evaluated, gradient_moments, trained
from moe.studies.claims.experiments.tuned import Asked, Plan, TunedExperiments
from moe.studies.study import Headline, Inputs, Job, Result

_HELD_OUT = 5000  # pictures of the training split, which choose learning rates
_WORTH_A_WORD = 0.001  # of the test pictures
_OURS, _SLOW, _MOMENTS = "straight_through", "reinforce, slow gates", "gradients"
_GRID = (0.004, 0.008, 0.016)
_PLANS = {
  "smoke": Plan((0.01,), 1, 2, {"units": 8, "hidden": 4, "pictures": 64, "epochs": 1}),
  "cpu": Plan(_GRID, 1, 5, {"units": 400, "hidden": 100, "pictures": 20_000, "epochs": 2}),
  "gpu": Plan(_GRID, 1, 5, {"units": 2000, "hidden": 400, "pictures": 55_000, "epochs": 100}),
}
_ARMS = {
  **{name: {"gate": name, "gate_rate": 1.0} for name in (*GATES, FROZEN)},
  _SLOW: {"gate": "reinforce", "gate_rate": 0.1},
}
_MEASURES = {"error": "test error", "open": "share of open gates", "held_out": "error on pictures held out"}


def _lower(arm: str, than: str) -> Asked:
  return Asked(f"{arm} has a lower test error than {than}", "error", than, arm, _WORTH_A_WORD)


class Estimators(TunedExperiments, name="estimators"):
  """Rectified units, each multiplied by a stochastic gate, which a tanh layer of its own computes from the picture.

  A divergence keeps a tenth of the gates open. All arms have the same pictures, order and Adam steps, with a rate that
  falls to 0, and a seed's same initial weights. The rate is chosen for every arm from the same grid, with a seed of its
  own, by the error on pictures held out of the training split. With SGD, the paper has a rate 100 times lower for the
  gates' path of REINFORCE; beside the arm with the same rate stands one with a tenth of it. Gates are drawn in
  evaluation too. The paper's bound on weights is left out. The budget cpu has 400 gates and two passes over a third of
  the training split, gpu 2,000 gates and 100 passes over nearly all of it.

  The primary contrast is straight-through against the noisy rectifier, the one of its rivals whose gradient is
  back-propagated and unbiased. A claim holds if the 95% interval of the paired difference in test error is above 0, and
  its mean above 0.001. The regime counts if straight-through is better than gates that are not trained. Beside it stand
  bias and spread of each gradient, relative to the exact one, over small problems of three units whose outcomes are
  enumerated; the rectifier's noise has 16 equally probable values there.
  """

  claim = "Among the estimators of gradients of stochastic gates, straight-through gives the lowest error on MNIST."
  source = "Bengio, Léonard and Courville 2013, arXiv 1308.3432, section 5: 1.39% with 2,000 gates"
  reads = ("data_dir",)
  budgets = ("smoke", "cpu", "gpu")
  plans = _PLANS
  arms = _ARMS
  chosen_by = "held_out"
  measures = _MEASURES
  asked = (
    _lower(_OURS, "noisy_rectifier"),
    *(_lower(_OURS, other) for other in ("stochastic_times_smooth", "reinforce", _SLOW)),
    _lower(_OURS, FROZEN),
  )

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    tags = {"arm": _MOMENTS, "use": _MOMENTS}
    first = Job(_MOMENTS, {"problems": 200}, tags=tags, measure=self.name)
    return [first, *super().jobs(budget, inputs, results)]

  def data_fields(self, inputs: Inputs) -> dict[str, Any]:
    return {"data_dir": inputs.data_dir}

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    found = self.data_read(budget, inputs)
    require(bool(found), "--data_dir", inputs.data_dir, "expected a TFDS directory with mnist")

  def data_read(self, budget: str, inputs: Inputs) -> dict[str, int]:
    return prepared_examples(inputs.data_dir, "mnist")

  def experiment(self, config: Mapping[str, Any]) -> dict[str, Any]:
    if "problems" in config:
      return {gate: gradient_moments(gate, config["problems"]) for gate in GATES}
    train, held_out, test = read_digits(config["data_dir"], config["pictures"])
    sizes, gate = (config["units"], config["hidden"], config["epochs"]), config["gate"]
    found: dict[str, list[list[float]]] = {name: [] for name in self.measures}
    for rate in config["rates"]:
      rows: dict[str, list[float]] = {name: [] for name in found}
      for seed in config["seeds"]:
        weights = trained(gate, sizes, train, rate, config["gate_rate"], jax.random.key(seed))
        error, is_open = evaluated(gate, weights, *test)
        held, _ = evaluated(gate, weights, *held_out)
        for name, value in (("error", error), ("open", is_open), ("held_out", held)):
          rows[name].append(float(value))
      for name, row in rows.items():
        found[name].append(row)
    return found

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    moments = next((one.measured for one in results if one.tags["use"] == _MOMENTS), {})
    return super().analyse(budget, results) | {_MOMENTS: moments}

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    heads = ["gradient, of the exact one's norm", "bias", "standard deviation", "cosine of its mean"]
    rows = [
      [gate, *(f"{of[name]:.3f}" for name in ("bias", "spread", "cosine"))] for gate, of in analysis[_MOMENTS].items()
    ]
    return [*(markdown_table(heads, rows) if rows else []), "", *super().lines(analysis)]

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    found = super().headline(analysis)
    control = [one["verdict"] for one in analysis["contrasts"] if one["claim"].endswith(FROZEN)]
    return dataclasses.replace(found, control=control[0]) if found and control else found


@functools.lru_cache(maxsize=1)
def read_digits(data_dir: str, pictures: int) -> tuple[Digits, Digits, Digits]:
  """So many pictures of MNIST to train on, the next ones held out, and the test split."""
  from moe.data.formats.tfds_pictures import TfdsPictures  # imports TensorFlow

  config, pixels = ImageDatasetConfig("mnist", data_dir), PictureFormat(28, 1, 1)

  def read(split: str) -> Digits:
    source = TfdsPictures(config, split)
    blocks = [block for shard in range(source.num_shards) for block in source.blocks(shard, 0, 0)]
    decoded = [block.decoded(i, pixels, any_size=False).ravel() for block in blocks for i in range(len(block))]
    return np.stack(decoded).astype(np.float32) / 255, np.concatenate([block.labels for block in blocks])

  x, y = read(f"train[:{pictures + _HELD_OUT}]")
  return (x[:pictures], y[:pictures]), (x[pictures:], y[pictures:]), read("test")
