"""Soft MoE, expert choice and token choice in a Vision Transformer: Puigcerver et al. 2023, sections 3.3 to 3.7."""

import functools
import glob
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.config import require
from moe.data.formats.prepared import prepared_examples
from moe.markdown import markdown_table
from moe.studies.arms import Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import TUNING, LanguageModels
from moe.studies.repository import repository_config
from moe.studies.settings import VISION
from moe.studies.study import Inputs, Result


@functools.cache  # it is asked for every run, and a folder of pictures may be large
def _is_tfds(data_dir: str) -> bool:
  """Whether it is a TFDS directory, as the default is, and not a folder of pictures."""
  prepared = glob.iglob(os.path.join(data_dir, "*", "**", "dataset_info.json"), recursive=True)
  return not data_dir or next(prepared, None) is not None


def _one(name: str, *, experts: float = 1.0, placement: Mapping[str, Any] | None = None, **options: Any) -> Arm:
  """A router with a slot per token, of experts as wide as the dense network."""
  model = {} if placement is None else {"model.encoder.moe.placement": placement}
  return Arm(router={"name": name, **options}, parts=1, match="total", experts=experts, model=model)


def _token_choice(order: str) -> Arm:
  """V-MoE with one expert per token, its noise and its losses."""
  return _one("batch_priority", top_k=1, capacity_factor=1.0, order=order)


_ARMS = {
  "dense": Arm(router=None),
  "soft_moe": _one("soft_moe", slots=2),
  "expert_choice": _one("expert_choice", capacity_factor=1.0),
  "token_choice": _token_choice("choice"),
  "batch_priority": _token_choice("batch_priority"),
  # As many experts as tokens, and few.
  "soft_moe_one_slot": _one("soft_moe", slots=1, experts=2.0),
  "soft_moe_eight_slots": _one("soft_moe", slots=8, experts=0.25),
  # Weights that know nothing of the tokens.
  "soft_dispatch": _one("soft_moe", slots=2, combine="uniform"),
  "soft_combine": _one("soft_moe", slots=2, dispatch="uniform"),
  "uniform": _one("soft_moe", slots=2, dispatch="uniform", combine="uniform"),
  "identity": _one("soft_moe", slots=2, dispatch="identity", combine="identity"),
  # Experts in one layer alone.
  "soft_moe_first": _one("soft_moe", slots=2, placement={"name": "listed", "layers": [0]}),
  "soft_moe_last": _one("soft_moe", slots=2, placement={"name": "last", "n": 1}),
}


class Images(LanguageModels, name="images"):
  """All sparse models have a slot per token, and half as many experts as a picture has tokens.

  Token choice is V-MoE's, with one expert per token, by position or with batch priority; expert choice takes one token
  per slot; both route over the whole batch. Soft MoE has two slots per expert; beside it stand one slot of twice the
  experts, as the paper has it, and eight of a quarter. These, and those with experts in one layer alone, differ in
  parameters too. Mixing tokens costs FLOPs, for which Soft MoE has fewer steps. `data_dir` is a TFDS directory, or a
  folder of class folders with pictures of the same size.
  """

  claim = "At equal training FLOPs Soft MoE is better than expert choice, token choice and a dense model."
  source = "Puigcerver et al. 2023, arXiv 2308.00951, figures 3 and 4, tables 3 to 6"
  setting = VISION
  arms = _ARMS
  control = "expert_choice"
  loss_of = "picture"
  reads = ("data_dir",)
  contrasts = (
    Contrast("soft_moe", "expert_choice"),
    Contrast("soft_moe", "batch_priority"),
    Contrast("soft_moe", "dense"),
    Contrast("batch_priority", "token_choice"),
    Contrast("soft_moe_one_slot", "soft_moe"),
    Contrast("soft_moe", "soft_moe_eight_slots"),
    Contrast("soft_moe", "soft_dispatch"),
    Contrast("soft_moe", "soft_combine"),
    Contrast("soft_dispatch", "uniform"),
    Contrast("soft_moe", "identity"),
    Contrast("soft_moe_last", "soft_moe_first"),
  )

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    wanted = f"expected a TFDS directory with {self._dataset}, or a folder of class folders"
    require(bool(self.data_read(budget, inputs)), "--data_dir", inputs.data_dir, wanted)

  def data_read(self, budget: str, inputs: Inputs) -> dict[str, int]:
    if _is_tfds(inputs.data_dir):
      return prepared_examples(inputs.data_dir, self._dataset)
    classes = sorted(path for path in pathlib.Path(inputs.data_dir).glob("*") if path.is_dir())
    return {path.name: sum(1 for _ in path.iterdir()) for path in classes}

  def prepare(self, inputs: Inputs) -> None:
    """The data are read as they are."""

  def data_fields(self, inputs: Inputs) -> dict[str, Any]:
    if _is_tfds(inputs.data_dir):
      return {"data.source.data_dir": inputs.data_dir}
    return {"data.source": {"name": "image_folder", "path": inputs.data_dir}}

  @property
  def _dataset(self) -> str:
    return repository_config(self.setting.config)["data"]["source"]["dataset"]

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    found: dict[str, list[float]] = {}
    for one in results:
      if one.tags["seed"] != TUNING:
        found.setdefault(one.tags["arm"], []).append(one.validation.get("accuracy", np.nan))
    return super().analyse(budget, results) | {"accuracy": found}

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    found = {arm: np.array(each, float) for arm, each in analysis["accuracy"].items()}
    best = sorted(found, key=lambda arm: -np.nan_to_num(found[arm].mean()))
    rows = [[arm, f"{found[arm].mean():.2%}", f"{found[arm].min():.2%}", f"{found[arm].max():.2%}"] for arm in best]
    table = markdown_table(["", "accuracy", "least", "greatest"], rows) if rows else []
    return [*super().lines(analysis), "", *table]
