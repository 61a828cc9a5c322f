"""Does expert choice learn to use the future in a decoder? Wang et al. 2024 (DeepSeek), section 5.2."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from moe.evaluation.leak_meters import company_leak, future_leak
from moe.evaluation.restore import Trained, restore
from moe.markdown import markdown_table
from moe.report.collect import validation_batches
from moe.report.decoder_leaks import decoder_leaks
from moe.report.types import Batch
from moe.studies.arms import ARMS, Arm, expert_choice
from moe.studies.contrasts import Contrast, by_seed, finding
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER
from moe.studies.study import Job, Result
from moe.training.state import merge

_ARMS = {
  "dense": ARMS["dense"],
  "causal_top2": ARMS["causal_top2"],
  "expert_choice_64": Arm(router=expert_choice(group_size=64)),
  "expert_choice_512": Arm(router=expert_choice(group_size=512)),
  "expert_choice": ARMS["expert_choice"],  # the whole batch
}
_ROUTED = tuple(name for name in _ARMS if name != "dense")
_BATCHES = 4  # of the validation split, whose most frequent ids the information meter draws
_METERS = {
  "future": "outputs that later tokens change",
  "company": "outputs that other rows change",
  "nats": "nats about the next token per layer",
}


class Leak(LanguageModels, name="leak"):
  """Experts choose among 64 tokens, a row of most budgets; among 512; or in the whole batch.

  The loss under the causal twin minus that under the own rule is what a model owes to the future, and to the change of
  rule between training and evaluation: the meters tell these apart. They are of the trained model: the share of outputs
  that change with later tokens, or with the other rows of the batch, and what the masks of a layer tell about the next
  token of a random text. Causal top-2 shows what they read without a leak.
  """

  claim = "In a decoder, expert choice learns to use later tokens."
  source = "Wang et al. 2024, arXiv 2408.15664, section 5.2: the loss falls by about a tenth with small pools"
  setting = DECODER
  arms = _ARMS
  control = "causal_top2"
  contrasts = (
    *(Contrast(name, name, baseline_rule="causal") for name in _ROUTED if name != "causal_top2"),
    Contrast("expert_choice_64", "expert_choice"),
    Contrast("expert_choice_64", "causal_top2", rule="causal"),
    Contrast("expert_choice", "causal_top2", rule="causal"),
  )

  def measurements(self, budget: str, runs: Sequence[Job]) -> list[Job]:
    return [self.measurement(run) for run in runs if run.tags["arm"] != "dense"]

  def measure(self, workdir: pathlib.Path, tags: Mapping[str, Any]) -> dict[str, Any]:
    trained = restore(workdir, "latest")
    batches = list(validation_batches(trained, _BATCHES))
    ids = np.concatenate([batch["targets"].ravel() for batch in batches])
    found = decoder_leaks(trained, batches[0], ids)
    return {**perturbed(trained, batches[0]), "nats": float(found.nats.mean()), "layers": found.nats.tolist()}

  def findings(self, measured: Sequence[Result]) -> list[dict[str, Any]]:
    found = []
    for arm in dict.fromkeys(one.tags["arm"] for one in measured):
      nats = {seed: one.measured["nats"] for seed, one in by_seed(measured, arm).items()}
      found.append(finding(f"The masks of {arm} tell about the next token, in nats per layer", nats, 0.005))
    return found

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    rows = [[name, *(f"{values[meter]:.4f}" for meter in _METERS)] for name, values in analysis["meters"].items()]
    table = markdown_table(["", *_METERS.values()], rows) if rows else []
    return [*super().lines(analysis), "", *table]

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    measured = [one for one in results if one.is_measurement]
    by_arm = {arm: by_seed(measured, arm).values() for arm in dict.fromkeys(one.tags["arm"] for one in measured)}
    means = {
      arm: {meter: float(np.mean([one.measured[meter] for one in found])) for meter in _METERS}
      for arm, found in by_arm.items()
    }
    return super().analyse(budget, results) | {"meters": means}


def perturbed(trained: Trained, batch: Batch) -> dict[str, float]:
  """The shares of a decoder's outputs that later tokens, and other rows, change: `future` and `company`."""

  @jax.jit
  def logits(targets: jax.Array) -> jax.Array:  # [B, T] to [B, T, V]
    model = merge(trained.graph, trained.params, trained.router_state)
    return model({**batch, "targets": targets}, training=False).logits

  targets, key = jax.numpy.asarray(batch["targets"]), jax.random.key(0)
  middle = targets.shape[1] // 2
  return {"future": future_leak(logits, targets, middle, key), "company": company_leak(logits, targets, key)}
