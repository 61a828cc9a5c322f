"""Sparse upcycling: Komatsuzaki et al. 2022, arXiv 2212.05055."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from moe.config import override
from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER
from moe.studies.study import Conversion, Inputs, Job, Result

_DENSE, _SCRATCH = "dense", "scratch"
_NEW_DATA = 500  # is added to the seed: what follows is not read in the order of before
# Each expert is as wide as the network that it begins as, so a token costs more than before: it has two.
_SPARSE = Arm(router={"name": "dropless", "renormalize": True, "balance_scope": "batch"}, parts=1, match="steps")


class Upcycling(LanguageModels, name="upcycling"):
  """A trained dense decoder is trained on for half as many steps: as it is, or with experts that begin as its networks.

  The third arm has the same experts and begins at random. All three read the same new data, with schedules of their own
  and learning rates tuned alike. Gates are renormalised, so that the upcycled model computes at first what the dense
  one does. Its steps cost what those of the model from scratch do, and more than the dense model's, as a verdict says.
  The dense model is the one of `convergence`, whose runs this study shares.
  """

  claim = (
    "After equal further steps an upcycled model beats one with experts from scratch, and the dense one trained on."
  )
  source = "Komatsuzaki et al. 2022, arXiv 2212.05055, figures 2 and 4"
  setting = DECODER
  arms: ClassVar[Mapping[str, Arm]] = {
    _DENSE: ARMS["dense"],
    "dense_continued": ARMS["dense"],
    "upcycled": _SPARSE,
    _SCRATCH: _SPARSE,
  }
  contrasts = (
    Contrast("upcycled", _SCRATCH),
    Contrast("upcycled", "dense_continued"),
    Contrast("dense_continued", _SCRATCH),
  )

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    rates = self.setting.budgets[budget].rates
    chosen = rates[0] if len(rates) == 1 else self.rates(budget, results).get(_DENSE)
    jobs = super().jobs(budget, inputs, results)
    first = [job for job in jobs if job.tags["arm"] == _DENSE]
    if chosen is None:
      return first
    return first + [_second(job, f"{_DENSE}/rate-{chosen:g}") for job in jobs if job.tags["arm"] != _DENSE]


def _second(job: Job, dense: str) -> Job:
  """The run after the dense one of the same seed, or beside it."""
  steps, experts = job.config["train"]["steps"] // 2, job.config["model"]["decoder"]["moe"]
  fields: dict[str, Any] = {"train.steps": steps, "data.seed": job.config["data"]["seed"] + _NEW_DATA}
  fields["train.eval_every"] = min(steps, job.config["train"]["eval_every"])
  begins = job.tags["arm"] != _SCRATCH
  return dataclasses.replace(
    job,
    config=override(job.config, fields.items()),
    source=f"{dense}/{job.name.rsplit('/', 1)[1]}" if begins else "",
    conversion=Conversion("upcycle", {"model.decoder.moe": experts}) if begins and experts else None,
    weight=steps,
  )
