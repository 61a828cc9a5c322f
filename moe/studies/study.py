"""What a study is: a claim, the runs or experiments that are to decide it, and what is made of their results."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from moe.config import Choice

_FOLDERS = ("path", "data_dir")  # fields of a data source, and of an experiment
_FILES = ("vocabulary", "table", "centroids")  # fields of a config


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What the runs of a study read.

  Attributes:
    text: of pretraining: a glob of text files, or several with commas between them.
    data_dir: the TFDS directory with tasks or pictures, empty for TFDS's default; or the folder of ratings.
    pretrained: workdir of a run that stands in for all that the study would pretrain; empty for none.
    tokens: the token directory that is made of the text, or is given in its place.
    arms: methods beside the study's own: by name a router's config section, or the fields of `moe.studies.arms.Arm`.
  """

  text: str
  data_dir: str
  pretrained: str = ""
  tokens: str = ""
  arms: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Conversion:
  """A verb of `moe.convert`, and the fields of a run's config that it changes."""

  verb: Literal["grow", "upcycle"]
  fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of a study: an ordinary run of `moe.train`, in a folder of its own below the study's.

  Attributes:
    name: of the folder, such as "finetune/rte/expert_choice/seed-0".
    config: the whole tree of its config, but for `init.workdir`; of an experiment what the study reads of it; {} for a
      measurement of its source.
    source: name of the job whose run it starts from, or measures; empty for none.
    tags: what results are grouped by: arm, seed, task and the like.
    weight: about how long it takes, relative to the others.
    blocks: batches of the validation split whose losses are kept one by one when it ends; 0 for none.
    measure: name of the study that measures its source, or makes an experiment if it has none; empty for a run.
    may_diverge: whether a run that diverges has a result, infinite losses; otherwise it has failed.
    conversion: what makes of its source what the run starts from; None for the source itself.
  """

  name: str
  config: Mapping[str, Any]
  source: str = ""
  tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weight: float = 1.0
  blocks: int = 0
  measure: str = ""
  may_diverge: bool = False
  conversion: Conversion | None = None

  @property
  def about(self) -> str:
    """How long it is."""
    if self.measure:
      return f"measures {self.source}" if self.source else "an experiment"
    return f"{self.config['train']['steps']} steps"

  @property
  def compared(self) -> dict[str, Any]:
    """The config as JSON holds it, but for where data lie: two results are of one study only if they agree in it."""
    if self.measure:
      fields = {name: value for name, value in self.config.items() if name not in _FOLDERS}
      return json.loads(json.dumps({"measure": self.measure, **fields}))
    source = {name: value for name, value in self.config["data"]["source"].items() if name not in _FOLDERS}
    data = dict(self.config["data"]) | {"source": source}
    return json.loads(json.dumps(_named_files(dict(self.config) | {"data": data})))


def _named_files(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A config in which the names of files stand for their paths."""
  found: dict[str, Any] = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      found[name] = _named_files(value)
    else:
      found[name] = os.path.basename(value) if name in _FILES and isinstance(value, str) else value
  return found


@dataclasses.dataclass(frozen=True)
class Result:
  """What is kept of a finished job.

  Attributes:
    name, tags: of the job.
    config: what is `compared` of the job.
    commit: of the repository that ran it; empty outside of one.
    seconds: that its attempts took together.
    step: updates made.
    validation: the last validation record of the run.
    scores: the content of its `scores.json`; {} for a run without tasks.
    curve: of every validation the `step` and the `loss`, and the mean `gate_entropy` of its routers, if they have one.
    blocks: by rule, "own" and that of the "causal" twin where there is one, the losses of the job's blocks.
    flops: of the forward passes of all its steps, as measured.
    parameters: of the model.
    measured: what a measurement or an experiment found.
  """

  name: str
  tags: Mapping[str, Any]
  config: Mapping[str, Any]
  commit: str
  seconds: float
  step: int
  validation: Mapping[str, Any]
  scores: Mapping[str, Any]
  curve: Sequence[Mapping[str, float]] = ()
  blocks: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
  flops: float = 0.0
  parameters: int = 0
  measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def is_measurement(self) -> bool:
    """Whether it is one of another job's run, or an experiment, and so has nothing of a run."""
    return "measure" in self.config


@dataclasses.dataclass(frozen=True)
class Headline:
  """A study in one row of a table.

  Attributes:
    verdict: of the primary contrast.
    number: what is compared, by how much, and the interval.
    seeds: that it is of.
    control: whether the regime counts: the verdict on its positive control; empty without one.
  """

  verdict: str
  number: str
  seeds: int
  control: str = ""


class Study(Choice):
  """Base of studies. Each is one file of `moe/studies/claims`, committed before its results.

  Attributes:
    claim: what was published, in one sentence.
    source: paper and section.
    budgets: names of its budgets, such as "smoke" and "cpu".
    planned: those of which no run is started.
    reads: what it must be given: "text" (or a run in place of it); as its `data_dir` either TFDS's ("data_dir"), or a
      folder of "ratings".
    example: the text, as commands in documents have it.
    takes_arms: whether methods can be added to it by `--arm`.
    runs: name of what its runs belong to, with their budget: studies of the same name share runs.
  """

  claim: ClassVar[str]
  source: ClassVar[str]
  budgets: ClassVar[tuple[str, ...]]
  planned: ClassVar[tuple[str, ...]] = ()
  reads: ClassVar[tuple[str, ...]] = ("text",)
  example: ClassVar[str] = "text/*.jsonl.xz"
  takes_arms: ClassVar[bool] = False

  @property
  def runs(self) -> str:
    return self.name

  def jobs(self, budget: str, inputs: Inputs, results: Sequence[Result]) -> list[Job]:
    """The runs of a budget that can be named, given the results of others; in the order in which they are started.

    With more results there may be more jobs, as when a learning rate is chosen first; none that was there is missing. A
    job stands after its source.
    """
    raise NotImplementedError

  def check_inputs(self, budget: str, inputs: Inputs) -> None:
    """Raises `UserError` unless all that runs read is there: the first that needs it may start hours later."""
    raise NotImplementedError

  def data_read(self, budget: str, inputs: Inputs) -> dict[str, int]:
    """The parts of `data_dir` that runs read, and how large each is, so that runs of different data are not mixed."""
    return {}

  def prepare(self, inputs: Inputs) -> None:
    """Makes once, before any job, what all of them read."""

  def measure(self, workdir: pathlib.Path, tags: Mapping[str, Any]) -> dict[str, Any]:
    """What a measurement with these tags finds in the workdir of its source, as JSON."""
    raise NotImplementedError

  def experiment(self, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a small experiment without the trainer finds, as JSON: for claims about gradients, gates and single layers.

    After a crash it starts over, so it should take a minute or two.
    """
    raise NotImplementedError

  def analyse(self, budget: str, results: Sequence[Result]) -> dict[str, Any]:
    """What the results say, as JSON; of an unfinished study what there is."""
    raise NotImplementedError

  def lines(self, analysis: Mapping[str, Any]) -> list[str]:
    """The analysis in Markdown; as JSON holds it, with null for numbers that are not finite."""
    raise NotImplementedError

  def headline(self, analysis: Mapping[str, Any]) -> Headline | None:
    """What the primary contrast says; None if nothing yet."""
    return None

  def draw(self, analysis: Mapping[str, Any], path: pathlib.Path) -> bool:
    """Draws the analysis as a PNG file, if there is something to draw."""
    return False
