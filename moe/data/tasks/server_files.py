"""The files that the servers of GLUE and SuperGLUE take: https://gluebenchmark.com, https://super.gluebenchmark.com.

GLUE's are tables of an index and a prediction, SuperGLUE's are JSON lines; both in the order of the rows' own numbers.
A prediction that is no label is written as the first one, since every row needs an answer.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from moe.data.tasks.glue import GlueTask

# MNLI has a second test set, with a file of its own.
_MISMATCHED = {"mnli": "MNLI-mm.tsv"}


def server_file(
  task: GlueTask, features: Sequence[Mapping[str, Any]], predictions: Sequence[Any], split: str
) -> tuple[str, str]:
  """The name and the content of the file that a task's server takes.

  Args:
    task: which file it is.
    features: of the examples, for their numbers.
    predictions: as `GlueTask.postprocess_fn` gives them.
    split: of the examples, such as "test".
  """
  name = _MISMATCHED.get(task.name, task.file) if split.endswith("mismatched") else task.file
  if task.name == "multirc":
    return name, _multirc(task, features, predictions)
  answers = sorted((int(row["idx"]), _answer(task, prediction)) for row, prediction in zip(features, predictions))
  if name.endswith(".tsv"):
    return name, "".join(f"{number}\t{answer}\n" for number, answer in [("index", "prediction"), *answers])
  return name, _lines({"idx": number, "label": answer} for number, answer in answers)


def _answer(task: GlueTask, prediction: Any) -> str | int:
  if task.name == "stsb":
    return f"{min(max(prediction, 0.0), 5.0):.3f}"
  return (task.file_labels or task.labels)[max(prediction, 0)]


def _multirc(task: GlueTask, features: Sequence[Mapping[str, Any]], predictions: Sequence[Any]) -> str:
  """One line per paragraph, with the answers to each of its questions."""
  paragraphs: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
  rows = [tuple(int(row[f"idx/{part}"]) for part in ("paragraph", "question", "answer")) for row in features]
  for i in sorted(range(len(rows)), key=rows.__getitem__):
    paragraph, question, answer = rows[i]
    paragraphs[paragraph][question].append({"idx": answer, "label": _answer(task, predictions[i]["value"])})
  return _lines(
    {"idx": paragraph, "passage": {"questions": [{"idx": n, "answers": found} for n, found in questions.items()]}}
    for paragraph, questions in paragraphs.items()
  )


def _lines(records: Any) -> str:
  return "".join(json.dumps(record) + "\n" for record in records)
