"""Tries a published claim again: `python -m moe.study --study finetune --budget cpu --workdir runs/finetune`.

Runs what is missing of the study's runs, each an ordinary run in a folder of its own, and writes what they say to
`analysis.json` in the workdir. The same command resumes after a stop or a crash, and nothing is lost. `--report` alone
analyses what is there. A run that fails is reported at the end, with exit code 1; the others continue, and the next
command retries it.

Pretraining text and tasks are the reader's own: `--text` is a glob of text files, `--data_dir` a TFDS directory. With
`--pretrained WORKDIR` nothing is pretrained, and the study says how that one model does on its tasks.
"""

import dataclasses
import glob
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from moe import commands
from moe.config import require

_STUDY = flags.DEFINE_string("study", None, "Name of the study.", required=True)
_BUDGET = flags.DEFINE_string("budget", "cpu", "How large it is: one of the study's budgets.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study's runs.", required=True)
_TEXT = flags.DEFINE_string("text", "", "Glob of the text files to pretrain on.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "TFDS directory of the tasks; empty for TFDS's default.")
_PRETRAINED = flags.DEFINE_string("pretrained", "", "Workdir of a run to take instead of pretraining.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time, each on a core of its own.", lower_bound=1)
_REPORT = flags.DEFINE_bool("report", False, "Only analyse what is there.")


def main() -> None:
  from moe.files import local_path, write_whole
  from moe.studies import Study
  from moe.studies.folder import Folder
  from moe.studies.repository import repository_commit
  from moe.studies.runner import run_missing
  from moe.studies.study import Inputs

  require(_STUDY.value in Study.choices, "--study", _STUDY.value, f"expected one of {', '.join(Study.choices)}")
  study = Study.choices[_STUDY.value]()
  require(_BUDGET.value in study.budgets, "--budget", _BUDGET.value, f"expected one of {', '.join(study.budgets)}")
  given = bool(_TEXT.value) != bool(_PRETRAINED.value)
  require(given, "--text", _TEXT.value, "expected a glob of text files to pretrain on, or else --pretrained WORKDIR")
  text, data_dir, pretrained = (
    str(local_path(f"--{flag.name}", flag.value)) if flag.value else "" for flag in (_TEXT, _DATA_DIR, _PRETRAINED)
  )
  inputs = Inputs(text, data_dir, pretrained)
  folder, commit = Folder(_WORKDIR.value), repository_commit()
  print(f"{study.name}: {study.claim} ({study.source})")
  jobs, root = _known(study, inputs, folder), folder.root
  usable = root.is_dir() or not (_REPORT.value or root.exists())
  require(usable, "--workdir", str(root), f"expected the folder of a study{'' if _REPORT.value else ', or a new one'}")
  if not _REPORT.value:
    _check_inputs(inputs, jobs)
  done = folder.results(jobs)
  print(f"{len(done)} of {len(jobs)} runs are finished{_time_left(jobs, done)}", flush=True)
  if not _REPORT.value:
    folder.forget_failures(jobs)
    while any(job for job in jobs if folder.result(job) is None and not folder.failed(job)):
      run_missing(folder, jobs, _JOBS.value, commit)
      if (more := _known(study, inputs, folder)) == jobs:
        break
      jobs = more
  results = folder.results(jobs)
  analysis = {
    "study": study.name,
    "budget": _BUDGET.value,
    "claim": study.claim,
    "source": study.source,
    "finished": len(results),
    "runs": len(jobs),
    "commits": sorted({result.commit for result in results}),
    **study.analyse(_BUDGET.value, results),
    "results": [dataclasses.asdict(result) for result in results],
  }
  write_whole(folder.root / "analysis.json", json.dumps(analysis, indent=1) + "\n")
  print("\n".join(study.lines(analysis)))
  failures = {job.name: why for job in jobs if (why := folder.failed(job))}
  print("".join(f"{name} failed: {why}\n" for name, why in failures.items()), end="")
  print(f"written to {folder.root / 'analysis.json'}")
  if failures:
    sys.exit(1)


def _check_inputs(inputs: Any, jobs: Sequence[Any]) -> None:
  """Raises `UserError` unless what the runs read is there: the first that needs it may start hours later."""
  from moe.data.tasks.glue import TASKS

  found = not inputs.text or glob.glob(inputs.text, recursive=True)
  require(bool(found), "--text", inputs.text, "expected to match at least one file")
  if inputs.pretrained:
    from moe.training.workdir import Workdir

    Workdir(inputs.pretrained, "--pretrained").load_config()
  for task in sorted({job.tags["task"] for job in jobs if inputs.data_dir and "task" in job.tags}):
    name, version = TASKS[task].dataset.split(":")
    expected = f"expected {name}/{version} in it, the TFDS data set of task {task}; see 'tfds build {name} --help'"
    require(os.path.isdir(os.path.join(inputs.data_dir, name, version)), "--data_dir", inputs.data_dir, expected)


def _known(study: Any, inputs: Any, folder: Any) -> list[Any]:
  """The study's jobs, as far as the results in the folder tell."""
  jobs: list[Any] = []
  while True:
    more = study.jobs(_BUDGET.value, inputs, folder.results(jobs))
    if len(more) == len(jobs):
      return jobs
    jobs = more


def _time_left(jobs: Sequence[Any], done: Sequence[Any]) -> str:
  """From the seconds of finished runs, in words; empty if there are none, or nothing is left."""
  weights = {job.name: job.weight for job in jobs}
  left = sum(weights.values()) - sum(weights[result.name] for result in done)
  if not done or not left:
    return ""
  seconds = sum(result.seconds for result in done) / sum(weights[result.name] for result in done) * left
  return f"; the others take about {seconds / 3600:.1f} hours of one core"


if __name__ == "__main__":
  commands.run(main)
