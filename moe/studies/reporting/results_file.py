"""The results file of a study: its analysis, as strict JSON from which all else is made."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from moe.config import require
from moe.studies.running.folder import Folder, StudyError
from moe.studies.study import Job, Result, Study


def analysis_of(study: Study, budget: str, jobs: Sequence[Job], folder: Folder) -> dict[str, Any]:
  """The content of a study's results file: what it says, all that it says it from, and why runs have failed.

  It is what JSON can hold: null stands for numbers that are not finite, and others have six digits. Fields that are the
  same in the configs of all runs stand in `config`, the others with each run: `config_of` puts them together. Paths
  below the study's folder are relative to it.
  """
  results, failed = folder.results(jobs), {}
  for job in jobs:  # each after the one that it starts from
    if why := folder.failed(job) or (f"it starts from {job.source}" if job.source in failed else ""):
      failed[job.name] = why
  shared = _shared([result.config for result in results if not result.is_measurement])
  analysis = {
    "study": study.name,
    "budget": budget,
    "claim": study.claim,
    "source": study.source,
    "text": {},
    **folder.read,
    "finished": len(results),
    "runs": len(jobs),
    "failed": failed,
    "commits": sorted({result.commit for result in results}),
    **study.analyse(budget, results),
    "config": shared,
    "results": [dataclasses.asdict(one) | {"config": _rest(one.config, shared)} for one in results],
  }
  return _plain(analysis, f"{folder.root}/")


def config_of(analysis: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
  """The whole config of a run in an analysis; of a measurement, what it has for one."""
  if "measure" in result["config"]:
    return dict(result["config"])
  return _merged(analysis["config"], result["config"])


def results_of(analysis: Mapping[str, Any]) -> list[Result]:
  """The results of the runs in an analysis, in six digits."""
  found = []
  for one in analysis["results"]:
    losses = {name: _infinite(one[name]) for name in ("validation", "curve", "blocks")}
    found.append(Result(**one | losses | {"config": config_of(analysis, one)}))
  return found


def _infinite(values: Any) -> Any:
  """A tree of JSON with infinity for every null: the losses of a run that has diverged."""
  if isinstance(values, Mapping):
    return {name: _infinite(value) for name, value in values.items()}
  return [_infinite(value) for value in values] if isinstance(values, list) else math.inf if values is None else values


def file_text(analysis: Mapping[str, Any]) -> str:
  """The text of the results file: a line per field, and per run."""
  texts = {name: _dump(value) for name, value in analysis.items()}
  texts["results"] = "[\n" + ",\n".join(map(_dump, analysis["results"])) + "\n]"
  return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in texts.items()) + "\n}\n"


def read_analysis(path: pathlib.Path) -> tuple[Study, dict[str, Any]]:
  """The study and the analysis of a results file.

  Raises:
    StudyError: it is none.
    ConfigError: it is that of an unknown study.
  """
  try:
    analysis = json.loads(path.read_text())
    name = analysis["study"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise StudyError(f"{path} cannot be read: expected the results file of a study ({error!r})") from None
  require(name in Study.choices, f"{path}: study", name, f"expected one of {', '.join(Study.choices)}")
  return Study.choices[name](), analysis


def lines_of(study: Study, analysis: Mapping[str, Any]) -> list[str]:
  """An analysis in Markdown, with the runs that it lacks because they have failed."""
  failed = [f"{name} failed: {why}" for name, why in analysis["failed"].items()]
  return [*study.lines(analysis), *([""] if failed else []), *failed]


def _plain(values: Any, root: str) -> Any:
  """A tree of JSON in six digits, with null for every number that JSON cannot hold, and paths relative to the root."""
  if isinstance(values, Mapping):
    return {name: _plain(value, root) for name, value in values.items()}
  if isinstance(values, list | tuple):
    return [_plain(value, root) for value in values]
  if isinstance(values, str):
    return values.removeprefix(root)
  if isinstance(values, float):
    return float(f"{values:.6g}") if math.isfinite(values) else None
  return values


def _shared(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What all trees have in common."""
  found = {}
  for name, value in trees[0].items() if trees else ():
    values = [tree[name] for tree in trees if name in tree]
    if len(values) < len(trees):
      continue
    if all(isinstance(one, Mapping) for one in values):
      found[name] = _shared(values)
    elif all(one == value for one in values):
      found[name] = value
  return found


def _rest(tree: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
  """What a tree has beyond what it shares."""
  found = {}
  for name, value in tree.items():
    if name not in shared:
      found[name] = value
    elif isinstance(value, Mapping) and (rest := _rest(value, shared[name])):
      found[name] = rest
  return found


def _merged(shared: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
  """The tree that `_shared` and `_rest` divided."""
  return {**shared, **rest, **{name: _merged(shared[name], rest[name]) for name in rest if name in shared}}


def _dump(values: Any) -> str:
  return json.dumps(values, allow_nan=False)
