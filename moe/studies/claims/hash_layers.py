"""Which hash of a token is a good router? Roller et al. 2021, section 4."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moe.convert.hash_table import make_table, read_corpus
from moe.evaluation.restore import restore
from moe.routing.solvers.hash_tables import TABLE_FUNCTIONS
from moe.studies.arms import ARMS, Arm
from moe.studies.contrasts import Contrast
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER
from moe.studies.study import Inputs, Job, Result

_HASHED = ("random", "bigram", "previous", "position", "future")
_DENSE = "dense"


def _hash(function: str, **table: str) -> Arm:
  return Arm(router={"name": "hash", "function": function, **table}, parts=1)


_ARMS = {
  _DENSE: ARMS[_DENSE],
  "hash": ARMS["hash"],
  **{f"hash_{function}": _hash(function) for function in _HASHED},
}


class HashLayers(LanguageModels, name="hash"):
  """One expert per token, as wide as the dense network, by a hash that never changes.

  Four of them are tables, made from the training text, and two of these from the embeddings of the study's first dense
  model too: their runs are named when that one is finished. `hash` is Zhou et al.'s, a token's id modulo the number of
  experts. The oracle hashes the token that is to be predicted.
  """

  claim = "Random, balanced and dispersed hashes of a token are equal, and better than clusters, neighbours, positions."
  source = (
    "Roller et al. 2021, arXiv 2106.04426, section 4: perplexity 23.22, 23.16 and 23.17 against 23.90 (clusters),"
    " 24.16 (previous), 24.19 (bigram), 25.07 (position) and 1.97 (oracle)"
  )
  setting = DECODER
  arms = _ARMS
  control = "hash_random"
  contrasts = (
    Contrast("hash_random", "hash_clustered"),
    Contrast("hash_balanced", "hash_random"),
    Contrast("hash_dispersed", "hash_random"),
    Contrast("hash", "hash_random"),
    Contrast("hash_dispersed", "hash_clustered"),
    Contrast("hash_clustered", "hash_bigram"),
    Contrast("hash_clustered", "hash_previous"),
    Contrast("hash_previous", "hash_position"),
    Contrast("hash_bigram", "hash_position"),
    Contrast("hash_predicted_future", "hash_random"),
    Contrast("hash_future", "hash_random", more_than=1.0),
  )

  def all_arms(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> dict[str, Arm]:
    """Those of tables once they are made; of the smoke budget the first."""
    tables = {name: path for one in results if one.is_measurement for name, path in one.measured["tables"].items()}
    made = {f"hash_{function}": _hash(function, table=path) for function, path in tables.items()}
    small = {self.contrasts[0].baseline} if budget == "smoke" else set(made)
    return super().all_arms(budget, inputs, results) | {name: arm for name, arm in made.items() if name in small}

  @classmethod
  def arm_names(cls) -> set[str]:
    return super().arm_names() | {f"hash_{function}" for function in TABLE_FUNCTIONS}

  def measurements(self, budget: str, runs: Sequence[Job]) -> list[Job]:
    experts = self.setting.budgets[budget].num_experts // 2  # of the dense network's width
    first = [run for run in runs if run.tags["arm"] == _DENSE and run.tags["seed"] == 0]
    return [self.measurement(run, experts=experts) for run in first]

  def measure(self, workdir: pathlib.Path, tags: Mapping[str, Any]) -> dict[str, Any]:
    """The paths of the tables, which stand beside the source's run."""
    baseline = restore(workdir, "latest")
    corpus = read_corpus(baseline.config.data)
    paths = {}
    for function in TABLE_FUNCTIONS:
      path = workdir.parent / f"tables-{tags['experts']}" / f"{function}.npz"
      path.parent.mkdir(exist_ok=True)
      path.unlink(missing_ok=True)  # of an attempt that was stopped
      make_table(function, corpus, tags["experts"], baseline=baseline).write(str(path))
      paths[function] = str(path)
    return {"tables": paths}
