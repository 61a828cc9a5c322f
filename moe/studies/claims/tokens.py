"""Is a token's number of experts a sign of its difficulty? Zhou et al. 2022, figure 3."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from moe.evaluation.restore import restore, vocabulary_of
from moe.markdown import markdown_table
from moe.report.collect import stack_layers, validation_batches
from moe.report.statistics import binomial_null, experts_per_token_shares
from moe.report.token_texts import token_texts
from moe.report.types import Batch
from moe.routing import Routing
from moe.studies.arms import ARMS
from moe.studies.contrasts import by_seed, finding
from moe.studies.language_models import LanguageModels
from moe.studies.settings import DECODER
from moe.studies.study import Job, Result
from moe.training.state import merge
from moe.training.step import token_losses

_ARMS = {name: ARMS[name] for name in ("expert_choice", "position_grouped")}
_BATCHES = 32  # of the validation split
_MANY = 3  # experts of a token that has more than the average of 2
_SHARES = {"0": slice(0, 1), "1": slice(1, 2), "2": slice(2, 3), "3 or 4": slice(3, 5), "more": slice(5, None)}
_SIGNS = {
  "loss": "the loss of the token after it",
  "frequency": "its frequency",
  "continuation": "whether it continues a word",
}


class Tokens(LanguageModels, name="tokens"):
  """What the trained runs of the study `convergence` do with validation text.

  By chance alone many tokens have more experts than two. If each of E experts took c / E of the tokens without regard
  to the others, their number would be binomial: of the 64 experts in the paper with c = 2, 27% of the tokens would have
  three or four, and 5% more. That is the first null; the second permutes each expert's choices over the tokens of the
  batch, so that its load stays as it is. Expert choice over the batch is as published, and it leaks: its losses, and
  the number of experts, know of later tokens. Position-grouped expert choice is causal.

  A token's frequency is the logarithm of how often its id is in these batches; it continues a word if its text begins
  with a letter or digit, where the first token of a word begins with a space. Correlations are Spearman's, of all
  tokens but the first of each row, which is none; the means over layers decide.
  """

  claim = "The number of experts of a token varies by its difficulty: 23% of the tokens have three or four, 3% more."
  source = "Zhou et al. 2022, figure 3"
  setting = DECODER
  arms = _ARMS
  contrasts = ()

  def measurements(self, budget: str, runs: Sequence[Job]) -> list[Job]:
    return [self.measurement(run) for run in runs if run.tags["arm"] in _ARMS]

  def measure(self, workdir: pathlib.Path, tags: Mapping[str, Any]) -> dict[str, Any]:
    trained = restore(workdir, "latest")

    @jax.jit
    def read(batch: Batch) -> tuple[Routing, jax.Array]:
      output = merge(trained.graph, trained.params, trained.router_state)(batch, training=False)
      return output.routing["decoder"], token_losses(output.logits, batch["targets"])[0]

    chosen: list[list[np.ndarray]] = []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("ids", "positions", "loss")}
    for batch in validation_batches(trained, _BATCHES):
      routing, losses = jax.device_get(read(batch))
      layers = stack_layers(trained.config.model, "decoder", routing, batch)
      chosen.append([layer.chosen for layer in layers])
      for name, found in zip(parts, (layers[0].ids, layers[0].positions, losses[batch["targets_segments"] > 0])):
        parts[name].append(found)
    ids, positions, loss = (np.concatenate(found) for found in parts.values())
    signs = _signs(ids, loss, token_texts(vocabulary_of(trained), np.unique(ids)))
    is_token = positions > 0
    by_layer = [_layer(list(batches), signs, is_token) for batches in zip(*chosen)]
    return {"tokens": len(ids), "layers": by_layer}

  def findings(self, measured: Sequence[Result]) -> list[dict[str, Any]]:
    means = _by_arm(measured)
    many = [
      finding(
        f"In {arm}, more tokens have {_MANY} or more experts than if each expert's choices are permuted",
        {seed: sum(one["experts"][_MANY:]) - sum(one["permuted"][_MANY:]) for seed, one in found.items()},
        more_than=0.01,
      )
      for arm, found in means.items()
    ]
    signs = [
      finding(
        f"In {arm}, a token's number of experts goes with {what}",
        {seed: one["spearman"][sign] for seed, one in found.items()},
        more_than=0.05,
        either_way=True,
      )
      for sign, what in _SIGNS.items()
      for arm, found in means.items()
    ]
    return many + signs

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    means = _by_arm([one for one in results if one.is_measurement])
    tokens = {arm: _mean(list(found.values())) for arm, found in means.items()}
    return super().analyse(budget, results) | {"tokens": tokens}

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    shares = [
      [arm, of, *(f"{sum(found[of][part]):.1%}" for part in _SHARES.values())]
      for arm, found in analysis["tokens"].items()
      for of in ("experts", "binomial", "permuted")
    ]
    signs = [
      [arm, what, f"{found['spearman'][sign]:+.3f}", f"{found['difference'][sign]:+.3f}"]
      for arm, found in analysis["tokens"].items()
      for sign, what in _SIGNS.items()
    ]
    return [
      *super().lines(analysis),
      "",
      *markdown_table(["", "tokens with", *_SHARES], shares),
      "",
      *markdown_table(["", "number of experts with", "correlation", "more experts if it is high"], signs),
    ]


def _layer(batches: Sequence[np.ndarray], signs: Mapping[str, np.ndarray], is_token: np.ndarray) -> dict[str, Any]:
  """One layer: the shares of tokens by their number of experts, those of the nulls, and what the number goes with.

  Args:
    batches: of each, which experts each of its n tokens has, bool `[n, E]`.
    signs: of each, `[N]`, one for each token of all batches.
    is_token: bool `[N]`, False for the start of a row.
  """
  chosen, draw = np.concatenate(batches), np.random.default_rng(0)
  permuted = np.concatenate([draw.permuted(one, axis=0) for one in batches])
  number = chosen.sum(1)
  found = {name: _association(number[is_token], sign[is_token]) for name, sign in signs.items()}
  return {
    "experts": experts_per_token_shares(chosen).tolist(),
    "binomial": binomial_null(chosen.shape[1], float(number.mean())).tolist(),
    "permuted": experts_per_token_shares(permuted).tolist(),
    "spearman": {name: one[0] for name, one in found.items()},
    "difference": {name: one[1] for name, one in found.items()},
  }


def _association(number: np.ndarray, sign: np.ndarray) -> tuple[float, float]:
  """Spearman's correlation, and how many more experts tokens with a sign above its median have than the others.

  Of a sign with two values those with the higher one. Both are 0 where all tokens are the same in one of the two.
  """
  high = sign > (np.median(sign) if len(np.unique(sign)) > 2 else sign.min())
  if not np.ptp(number) or not high.any():
    return 0.0, 0.0
  return float(stats.spearmanr(number, sign).statistic), float(number[high].mean() - number[~high].mean())


def _signs(ids: np.ndarray, loss: np.ndarray, texts: Mapping[int, str]) -> dict[str, np.ndarray]:
  """What the number of a token's experts may go with, float `[N]` each."""
  _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
  continues = np.array([texts[i][:1].isalnum() for i in ids.tolist()])
  return {"loss": loss, "frequency": np.log(counts)[index], "continuation": continues.astype(float)}


def _by_arm(measured: Sequence[Result]) -> dict[str, dict[int, Any]]:
  """By arm and seed, the mean of what was measured over the layers."""
  arms = dict.fromkeys(one.tags["arm"] for one in measured)
  return {arm: {seed: _mean(one.measured["layers"]) for seed, one in by_seed(measured, arm).items()} for arm in arms}


def _mean(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *numbers: float(np.mean(numbers)), *trees)
