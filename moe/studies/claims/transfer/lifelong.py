"""A model that grows with its texts: Lifelong-MoE, Chen et al. 2023, arXiv 2305.12281."""

import dataclasses
import glob
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe.config import build, override, require
from moe.data import DataConfig
from moe.data.documents import Ragged
from moe.data.formats.token_directory import META, feature_path, open_feature, read_meta
from moe.data.formats.tokenizing import tokenize
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import restore
from moe.markdown import markdown_table
from moe.studies import settings
from moe.studies.arms import Arm
from moe.studies.contrasts import corrected, finding, headline, sentence
from moe.studies.reporting import figure
from moe.studies.repository import repository_config
from moe.studies.study import Conversion, Headline, Inputs, Job, Result, Study

# Two experts per token, each half as wide as the dense network: the dense model's FLOPs, however many experts there
# are. The biases are to let new experts in within a stage.
_EXPERTS = Arm(router={"name": "loss_free", "bias_rate": 0.01})
_KL = 1.0  # weight of the divergence from the model of the stage before
_JOINT = "joint"
_OLD = "moe/(experts|router/kernel)"  # what is frozen of old experts


@dataclasses.dataclass(frozen=True)
class _Arm:
  """What an arm does from stage to stage.

  Attributes:
    experts: whether it has some.
    grows: whether a stage adds experts, and freezes those that were there.
    kl: weight of the divergence from the model of the stage before.
    joint: whether it reads all texts together, in one stage as long as all.
  """

  experts: bool = True
  grows: bool = False
  kl: float = 0.0
  joint: bool = False


_ARMS = {
  "dense": _Arm(experts=False),
  "continued": _Arm(),
  "grown": _Arm(grows=True, kl=_KL),
  "grown_free": _Arm(grows=True),
  _JOINT: _Arm(joint=True),
}
_OWN = ("continued", "grown")  # of the primary finding


@dataclasses.dataclass(frozen=True)
class Budget:
  """How large the study is.

  Attributes:
    config: what is changed of the decoder's config in `moe.studies.settings`.
    arms: of the study.
    seeds: of each arm; there is no grid of learning rates, all have the config's.
    experts: of the first stage.
    more: experts that each later stage adds.
    blocks: validation batches of each text.
  """

  config: Mapping[str, Any]
  arms: Sequence[str]
  seeds: int
  experts: int
  more: int
  blocks: int


BUDGETS = {
  "smoke": Budget(settings.DECODER.budgets["smoke"].config, _OWN, seeds=1, experts=4, more=2, blocks=2),
  "cpu": Budget(
    {"train.steps": 200, "optimizer.schedule.warmup_steps": 20}, tuple(_ARMS), seeds=3, experts=8, more=4, blocks=32
  ),
  "gpu": Budget(settings.DECODER.budgets["gpu"].config, tuple(_ARMS), seeds=4, experts=16, more=8, blocks=24),
}


class Lifelong(Study, name="lifelong"):
  """A decoder reads one text after the other, each for as many steps, and each stage begins with the last one's model.

  Plain continued training, dense and with experts, is compared with Lifelong-MoE: a stage adds experts by
  `moe.convert grow`, which changes no output; the old experts and their columns of the router are frozen; and the model
  is held to what it predicted before the stage, on the new text (KL, weight 1). One arm grows without that. One has the
  documents of all texts in random order, as many steps in all. Every stage begins with a new optimizer and schedule;
  the first is the same run for all arms with experts.

  Forgetting is by how much the loss on an earlier text has risen from the end of its stage to the end of the last, in
  nats per token, the mean over the earlier texts. The primary finding is how much less of it Lifelong-MoE has than
  continued training with the experts of the first stage. FLOPs of a forward pass are the same for all; the divergence
  costs a second one, of the model before. Learning rate and the weight of the divergence are not tuned.
  """

  claim = "Growing, frozen experts and output regularisation forget less than continued training of equal compute."
  source = "Chen et al. 2023 (Lifelong-MoE), arXiv 2305.12281"
  budgets = tuple(BUDGETS)
  example = "text/wiki.jsonl.xz,text/novels.jsonl.xz,text/openstax.jsonl.xz"

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    plan, texts = BUDGETS[budget], _texts(inputs)
    runs = [
      job for seed in range(plan.seeds) for arm in plan.arms for job in _runs(plan, arm, seed, texts, _folder(inputs))
    ]
    runs = list({job.name: job for job in runs}.values())  # arms share the first stage
    measured = [
      Job(
        f"measures/{run.name}",
        {},
        source=run.name,
        tags=dict(run.tags) | {"texts": texts, "blocks": plan.blocks},
        weight=0.3 * run.weight,
        measure=self.name,
      )
      for run in runs
    ]
    return runs + measured

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    made = [path.name for path in _made(inputs)]
    same = set(made) <= set(_texts(inputs))
    require(same, "--text", inputs.text, f"expected the texts that this --workdir has begun with: {', '.join(made)}")

  def prepare(self, inputs: Inputs) -> None:
    folder, config = _folder(inputs), repository_config(settings.DECODER.config)["data"]
    folder.mkdir(parents=True, exist_ok=True)
    texts = _texts(inputs)
    for name, path in zip(texts, _files(inputs.text)):
      if not (folder / name).is_dir():
        tokenize(build(DataConfig, config | {"source": {"name": "text", "path": path}}), folder / name)
    if not (folder / _JOINT).is_dir():
      _write_together([folder / name for name in texts], folder / _JOINT)

  def measure(self, workdir: pathlib.Path, tags: Mapping[str, Any]) -> dict[str, Any]:
    trained, losses = restore(workdir, "latest"), {}
    data = trained.config.data
    source: Any = data.source
    for name in tags["texts"]:
      path = str(pathlib.Path(source.path).parent / name)
      of_text = dataclasses.replace(data, source=dataclasses.replace(source, path=path))
      losses[name] = evaluate(trained, of_text, "validation", tags["blocks"])["loss"]
    return {"losses": losses}

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    plan = BUDGETS[budget]
    tables = {arm: _table(arm, [one for one in results if one.is_measurement]) for arm in plan.arms}
    forgotten = {arm: _forgetting(of) for arm, of in tables.items() if arm != _JOINT}
    final = {arm: {seed: float(np.mean(rows[-1])) for seed, rows in of.items()} for arm, of in tables.items()}
    newest = {arm: {seed: float(rows[-1][-1]) for seed, rows in of.items()} for arm, of in tables.items()}
    asked = [
      ("grown forgets less than continued, in nats per token", forgotten, "continued", "grown"),
      ("grown forgets less than dense, in nats per token", forgotten, "dense", "grown"),
      ("grown forgets less than grown_free, in nats per token", forgotten, "grown_free", "grown"),
      ("grown_free forgets less than continued, in nats per token", forgotten, "continued", "grown_free"),
      ("grown has a lower loss than continued on all texts in the end, in nats per token", final, "continued", "grown"),
      ("grown has a lower loss than continued on the last text, in nats per token", newest, "continued", "grown"),
    ]
    findings = [
      finding(claim, values, more_than=0.005)
      for claim, numbers, baseline, arm in asked
      if (values := _differences(numbers.get(baseline, {}), numbers.get(arm, {})))
    ]
    return {
      "texts": next((one.tags["texts"] for one in results if one.is_measurement), []),
      "losses": {arm: {str(seed): rows for seed, rows in of.items()} for arm, of in tables.items()},
      "forgetting": {arm: list(of.values()) for arm, of in forgotten.items()},
      "contrasts": corrected(findings) if findings else [],
    }

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    return headline(analysis["contrasts"], None)

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    texts, rows = _names(analysis), []
    for arm, of in analysis["losses"].items():
      stages = np.array(list(of.values()), float).mean(0) if of else np.zeros((0, len(texts)))  # [stages, texts]
      for stage, losses in enumerate(stages):
        after = "all together" if arm == _JOINT else texts[stage]
        forgotten = analysis["forgetting"].get(arm) if stage == len(texts) - 1 else None
        said = f"{np.mean(forgotten):+.3f}" if forgotten else ""
        rows.append([arm, after, *(f"{math.exp(loss):.1f}" for loss in losses), said])
    table = markdown_table(["", "perplexity after", *texts, "forgotten, nats"], rows) if rows else []
    return [*table, "", *map(sentence, analysis["contrasts"])]

  def draw(self, analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
    losses = {arm: [np.array(rows) for rows in of.values()] for arm, of in analysis["losses"].items() if of}
    return figure.draw_stages(analysis, losses, _names(analysis), path)


def _names(analysis: Mapping[str, Any]) -> list[str]:
  """The texts without the numbers of their folders."""
  return [name.split("-", 1)[1] for name in analysis["texts"]]


def _runs(plan: Budget, arm: str, seed: int, texts: Sequence[str], folder: pathlib.Path) -> list[Job]:
  """The runs of an arm with a seed, a stage each; the first stage of all arms with experts is that of `continued`."""
  how = _ARMS[arm]
  stages = [_JOINT] if how.joint else texts
  jobs: list[Job] = []
  for stage, text in enumerate(stages):
    shared = "continued" if how.grows and stage == 0 else arm
    fields: dict[str, Any] = {
      "seed": seed,
      "data.seed": seed,
      "data.source": {"name": "tokens", "path": str(folder / text)},
      "data.vocabulary": "",
    }
    size = settings.Budget(plan.config, _number(plan, how, stage), plan.seeds, rates=(), blocks=plan.blocks)
    tree = (_EXPERTS if how.experts else Arm(router=None)).tree(settings.DECODER, size)
    steps = tree["train"]["steps"] * (len(texts) if how.joint else 1)
    fields |= {"train.steps": steps, "train.eval_every": steps, "train.checkpoint_every": steps}
    fields |= {"train.eval_batches": plan.blocks}
    conversion = None
    if stage and how.kl:
      fields["init"] = {"kl_loss": how.kl}
    if stage and how.grows:
      fields["optimizer.frozen"] = [f"{_OLD}@{_number(plan, how, stage - 1)}"]
      conversion = Conversion("grow", {"model.decoder.moe.num_experts": _number(plan, how, stage)})
    jobs.append(
      Job(
        f"{shared}/seed-{seed}/{text}",
        override(tree, fields.items()),
        source=jobs[-1].name if stage else "",
        tags={"arm": shared, "seed": seed, "stage": stage},
        weight=steps * (1.5 if how.kl and stage else 1.0),
        conversion=conversion,
      )
    )
  return jobs


def _number(plan: Budget, how: _Arm, stage: int) -> int:
  """Experts in a stage."""
  return plan.experts + (plan.more * stage if how.grows else 0)


def _folder(inputs: Inputs) -> pathlib.Path:
  """Where the texts' token directories are made: beside that of other studies."""
  return pathlib.Path(inputs.tokens).with_name("texts")


def _write_together(parts: Sequence[pathlib.Path], out: pathlib.Path) -> None:
  """A token directory with the documents of several, in random order."""
  made = out.with_name(f"{out.name}.part")
  shutil.rmtree(made, ignore_errors=True)
  shutil.copytree(parts[0], made)  # with the vocabulary, which is that of all
  meta = read_meta(made)
  for split, entry in meta["splits"].items():
    features = [open_feature(part, split, "targets", read_meta(part)) for part in parts]
    wholes = [feature.part(0, len(feature.offsets) - 1) for feature in features]
    documents = [whole[number] for whole in wholes for number in range(len(whole))]
    order = np.random.default_rng(0).permutation(len(documents))
    mixed = Ragged.join([documents[number] for number in order])
    mixed.flat.astype(meta["dtype"]).tofile(str(feature_path(made, split, "targets", "bin")))
    np.save(str(feature_path(made, split, "targets", "offsets.npy")), mixed.offsets)
    entry |= {"documents": len(mixed), "tokens": {"targets": int(mixed.offsets[-1])}}
  (made / META).write_text(json.dumps(meta))
  made.rename(out)


def _made(inputs: Inputs) -> list[pathlib.Path]:
  """The token directories of single texts that are there, in the order of stages."""
  return sorted(path for path in _folder(inputs).glob("[0-9]-*") if "." not in path.name)  # a kill may leave a .part


def _files(text: str) -> list[str]:
  """The files of a comma-separated list of globs, in this order."""
  return [path for part in text.split(",") for path in sorted(glob.glob(part, recursive=True))]


def _texts(inputs: Inputs) -> list[str]:
  """The names of the texts, in the order in which they are read; without `--text` those that were read before.

  Raises:
    ConfigError: they are fewer than two, or too many.
  """
  if not inputs.text and (made := _made(inputs)):
    return [path.name for path in made]
  files = _files(inputs.text)
  wanted = "expected to match from two to ten files, which are read one after the other: commas may separate globs"
  require(2 <= len(files) <= 10, "--text", inputs.text, wanted)
  return [
    f"{stage}-{re.sub(r'[^A-Za-z0-9_]', '', os.path.basename(path).split('.')[0])}" for stage, path in enumerate(files)
  ]


def _table(arm: str, measured: Sequence[Result]) -> dict[int, list[list[float]]]:
  """By seed, for an arm whose stages are all measured, the losses `[stages, texts]`."""
  shared = "continued" if _ARMS[arm].grows else arm
  found: dict[int, dict[int, list[float]]] = {}
  for one in measured:
    if one.tags["arm"] == (arm if one.tags["stage"] else shared):
      losses = [one.measured["losses"][text] for text in one.tags["texts"]]
      found.setdefault(one.tags["seed"], {})[one.tags["stage"]] = losses
  return {
    seed: [of[stage] for stage in sorted(of)]
    for seed, of in sorted(found.items())
    if len(of) == (1 if arm == _JOINT else len(of[0]) if 0 in of else math.inf)
  }


def _forgetting(table: Mapping[int, Sequence[Sequence[float]]]) -> dict[int, float]:
  """By seed, how much the losses on all texts but the last have risen since their stages, on average."""
  return {
    seed: float(np.mean([rows[-1][text] - rows[text][text] for text in range(len(rows) - 1)]))
    for seed, rows in table.items()
  }


def _differences(baseline: Mapping[int, float], arm: Mapping[int, float]) -> dict[int, float]:
  """By seed, how much lower the arm's number is."""
  return {seed: baseline[seed] - arm[seed] for seed in baseline if seed in arm}
