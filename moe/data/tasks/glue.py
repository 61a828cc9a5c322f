"""What the tasks of GLUE and SuperGLUE are: data set, text, labels, metrics, the server's file.

The text is T5's (Raffel et al. 2020, appendix D): the task's name, then every field after its own name, and the label
as a word. Two differ from the appendix, as T5's released tasks do: WiC has no part of speech, which TFDS does not
carry, and AX is written as MNLI, whose labels it has. RTE is GLUE's, not SuperGLUE's copy with other field names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from moe.config import require
from moe.data.errors import DataError
from moe.data.formats.prepared import how_to_prepare
from moe.data.tasks import metrics

HIDDEN = -1  # the label of the examples of test splits


@dataclasses.dataclass(frozen=True)
class GlueTask:
  """One task.

  Attributes:
    name: as a source names it.
    dataset: the TFDS data set, config and version.
    fields: what the model reads, in this order.
    labels: their texts, in the order of the data set's label numbers; none where any text can be the
      answer.
    file: of the predictions for the GLUE or SuperGLUE server.
    file_labels: how that file writes each label; as its text if left out.
    metric_fns: in seqio's convention, fn(targets, predictions) to values by name, as `metrics` has them.
    metric: the name of the primary metric. Zhou et al. 2022 report accuracy everywhere.
    prefix: the first word of the text, where it is not the name.
    splits: the data set's names of splits that have another name there.
    postprocess: seqio's postprocess_fn, where it is not the number of the label.
  """

  name: str
  dataset: str
  fields: tuple[str, ...]
  labels: tuple[str, ...]
  file: str
  file_labels: tuple[str | int, ...] = ()
  metric_fns: tuple[Callable[..., dict[str, float]], ...] = (metrics.accuracy,)
  metric: str = "accuracy"
  prefix: str = ""
  splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  postprocess: Callable[..., Any] | None = None

  def require_prepared(self, data_dir: str, field: str, value: str, exists: Callable[[str], bool]) -> None:
    """Raises `ConfigError` unless the data set is in a TFDS directory.

    Args:
      data_dir: the directory.
      field: of the error.
      value: of the error.
      exists: whether there is a file of this path.
    """
    name, version = self.dataset.split(":")
    looked = f"{data_dir}/{name}/{version}"
    expected = f"expected the TFDS data set {self.dataset} in {looked}; {how_to_prepare(name, data_dir)}"
    require(exists(f"{looked}/dataset_info.json"), field, value, expected)

  def postprocess_fn(self, text: str, example: Mapping[str, Any] | None = None, is_target: bool = False, **_) -> Any:
    """What the metrics take: of a target the label, of a prediction the label whose text it is, -1 for any other."""
    if self.postprocess is not None:
      return self.postprocess(text, example=example, is_target=is_target)
    if is_target and example is not None:
      return int(example["label"])
    return self._number(text)

  def _number(self, text: str) -> int:
    text = text.strip()
    return self.labels.index(text) if text in self.labels else -1

  def is_hidden(self, example: Mapping[str, Any]) -> bool:
    """Whether the label of a preprocessed example is not public."""
    return bool(example["label"] == HIDDEN)

  def check(self, example: Mapping[str, Any], where: str) -> None:
    """Raises `DataError` if a preprocessed example has nothing to read: none of its fields has text."""
    if example["empty"]:
      raise DataError(where, f"is empty: expected text in {' or '.join(self.fields)}")

  def is_learned(self, example: Mapping[str, Any], where: str) -> bool:
    """Whether the loss is taken of a preprocessed example. WSC's text names a noun: only the right one is learned.

    Raises:
      DataError: the example is empty, or its label is hidden.
    """
    self.check(example, where)
    if self.is_hidden(example):
      raise DataError(where, "has no label (-1): expected a split with public labels, since the loss is taken of them")
    return self.name != "wsc" or bool(example["label"] == 1)


def _score(text: str, example: Mapping[str, Any] | None, is_target: bool) -> float:
  """STS-B: the score, of a target as people gave it; -1 for a text that is no number."""
  if is_target and example is not None:
    return float(example["label"])
  try:
    score = float(text)
  except ValueError:
    return -1.0
  return score if math.isfinite(score) else -1.0


def _answer_to_question(text: str, example: Mapping[str, Any] | None, is_target: bool) -> dict[str, Any]:
  """MultiRC: the label, and the question that it belongs to."""
  number = int(example["label"]) if is_target else TASKS["multirc"]._number(text)
  return {"value": number, "group": (int(example["idx/paragraph"]), int(example["idx/question"]))}


# What does not tell two nouns apart.
_DETERMINERS = {"a", "an", "the", "this", "that", "these", "those", "my", "your", "his", "her", "its", "our", "their"}
_DETERMINERS |= {"whose", "which", "some", "each", "every", "few", "many", "much"}


def _is_referent(text: str, example: Mapping[str, Any] | None, is_target: bool) -> int:
  """WSC: whether the pronoun means the noun of the example; of a prediction, whether it names that noun.

  As in T5, either may have more words ("Bob", "old Bob Smith"), but not a possessive that the other has not.
  """
  if is_target:
    return int(example["label"])
  noun = example["targets_pretokenized"]
  noun = noun.decode() if isinstance(noun, bytes) else str(noun)
  ours, theirs = ({word for word in t.lower().split() if word not in _DETERMINERS} for t in (text, noun))
  if not ours:
    return -1
  possessive = ("'" in " ".join(ours)) != ("'" in " ".join(theirs))
  return int(not possessive and (ours <= theirs or theirs <= ours))


def mark_pronoun(text: bytes, pronoun: bytes, index: int) -> str:
  """WSC's text with its pronoun between asterisks.

  Args:
    text: words between single spaces.
    pronoun: one word.
    index: the number of the word; in a few rows that of a word nearby.
  """
  words, word = text.decode().split(" "), pronoun.decode()
  there = [n for n, found in enumerate(words) if found.strip(".,;:!?'\"") == word] or [min(int(index), len(words) - 1)]
  nearest = min(there, key=lambda n: abs(n - int(index)))
  words[nearest] = words[nearest].replace(word, f"*{word}*", 1)
  return " ".join(words)


_NLI = ("entailment", "neutral", "contradiction")
_ENTAILS = ("entailment", "not_entailment")
_TRUE = ("False", "True")
_TRUE_FALSE = ("false", "true")
_NUMBERS = ("0", "1")
_F1 = (metrics.f1, metrics.accuracy)
_MATCHED = {"validation": "validation_matched", "test": "test_matched"}

TASKS = {
  task.name: task
  for task in (
    GlueTask("boolq", "super_glue/boolq:1.0.2", ("passage", "question"), _TRUE, "BoolQ.jsonl", _TRUE_FALSE),
    GlueTask(
      "cb",
      "super_glue/cb:1.0.2",
      ("hypothesis", "premise"),
      ("entailment", "contradiction", "neutral"),
      "CB.jsonl",
      metric_fns=(metrics.f1_macro, metrics.accuracy),
    ),
    GlueTask(
      "cola",
      "glue/cola:2.0.0",
      ("sentence",),
      ("unacceptable", "acceptable"),
      "CoLA.tsv",
      _NUMBERS,
      metric_fns=(metrics.matthews, metrics.accuracy),
    ),
    GlueTask("mnli", "glue/mnli:2.0.0", ("hypothesis", "premise"), _NLI, "MNLI-m.tsv", splits=_MATCHED),
    GlueTask(
      "mrpc",
      "glue/mrpc:2.0.0",
      ("sentence1", "sentence2"),
      ("not_equivalent", "equivalent"),
      "MRPC.tsv",
      _NUMBERS,
      metric_fns=_F1,
    ),
    GlueTask("qnli", "glue/qnli:2.0.0", ("question", "sentence"), _ENTAILS, "QNLI.tsv"),
    GlueTask(
      "qqp",
      "glue/qqp:2.0.0",
      ("question1", "question2"),
      ("not_duplicate", "duplicate"),
      "QQP.tsv",
      _NUMBERS,
      metric_fns=_F1,
    ),
    GlueTask("rte", "glue/rte:2.0.0", ("sentence1", "sentence2"), _ENTAILS, "RTE.tsv"),
    GlueTask("sst2", "glue/sst2:2.0.0", ("sentence",), ("negative", "positive"), "SST-2.tsv", _NUMBERS),
    GlueTask("wic", "super_glue/wic:1.0.2", ("sentence1", "sentence2", "word"), _TRUE, "WiC.jsonl", _TRUE_FALSE),
    GlueTask("wnli", "glue/wnli:2.0.0", ("sentence1", "sentence2"), _ENTAILS[::-1], "WNLI.tsv", _NUMBERS),
    GlueTask(
      "stsb",
      "glue/stsb:2.0.0",
      ("sentence1", "sentence2"),
      tuple(f"{fifths / 5:.1f}" for fifths in range(26)),
      "STS-B.tsv",
      metric_fns=(metrics.pearson, metrics.spearman),
      metric="pearson",
      postprocess=_score,
    ),
    GlueTask(
      "copa",
      "super_glue/copa:1.0.2",
      ("choice1", "choice2", "premise", "question"),
      ("choice1", "choice2"),
      "COPA.jsonl",
      (0, 1),
    ),
    GlueTask(
      "multirc",
      "super_glue/multirc:1.0.2",
      ("question", "answer", "paragraph"),
      _TRUE,
      "MultiRC.jsonl",
      (0, 1),
      metric_fns=(metrics.f1_of_answers, metrics.exact_match, metrics.accuracy_of_answers),
      postprocess=_answer_to_question,
    ),
    GlueTask("wsc", "super_glue/wsc.fixed:1.0.2", ("text",), (), "WSC.jsonl", _TRUE, postprocess=_is_referent),
    GlueTask(
      "ax",
      "glue/ax:2.0.0",
      ("hypothesis", "premise"),
      _NLI,
      "AX.tsv",
      metric_fns=(metrics.matthews, metrics.accuracy),
      prefix="mnli",
    ),
  )
}

# The eleven tasks of Zhou et al. 2022, table 2, as a mixture with rates in proportion to their numbers of examples.
MIXTURE = "glue_super_glue_11"
ELEVEN = ("boolq", "cb", "cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wic", "wnli")
