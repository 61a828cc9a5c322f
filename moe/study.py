"""Tries a published claim again: `python -m moe.study --study finetune --budget cpu --workdir runs/finetune`.

Runs what is missing of the study's runs, each an ordinary run in a folder of its own, and writes what they say to
`analysis.json` in the workdir. The same command resumes after a stop or a crash, and nothing is lost. `--report` alone
analyses what is there. A run that fails is reported at the end, with exit code 1; the others continue, and the next
command retries it.

Pretraining text and tasks are the reader's own: `--text` is a glob of text files, `--data_dir` a TFDS directory. With
`--pretrained WORKDIR` nothing is pretrained, and the study says how that one model does on its tasks.
"""

import json
import sys

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
  from moe.studies.conduct import analysis_of, hours_left, known_jobs, lines_of, run_study
  from moe.studies.folder import Folder
  from moe.studies.repository import repository_commit
  from moe.studies.study import Inputs

  name, budget = _STUDY.value, _BUDGET.value
  require(name in Study.choices, "--study", name, f"expected one of {', '.join(Study.choices)}")
  study = Study.choices[name]()
  require(budget in study.budgets, "--budget", budget, f"expected one of {', '.join(study.budgets)}")
  given = bool(_TEXT.value) != bool(_PRETRAINED.value)
  require(given, "--text", _TEXT.value, "expected a glob of text files to pretrain on, or else --pretrained WORKDIR")
  inputs = Inputs(
    *(str(local_path(f"--{flag.name}", flag.value)) if flag.value else "" for flag in (_TEXT, _DATA_DIR, _PRETRAINED))
  )
  folder = Folder(_WORKDIR.value)
  folder.check(name, budget, may_be_new=not _REPORT.value)
  jobs = known_jobs(study, budget, inputs, folder)
  print(f"{study.name}: {study.claim} ({study.source})")
  if budget in study.planned:
    print("\n".join(f"{job.name}: {job.config['train']['steps']} steps" for job in jobs))
    print(f"budget {budget} is planned only: these {len(jobs)} runs and more, and none was started")
    return
  done = folder.results(jobs)
  hours = hours_left(jobs, done)
  left = "" if hours is None else f"; the others take about {hours:.1f} hours of one core"
  print(f"{len(done)} of {len(jobs)} runs are finished{left}", flush=True)
  if not _REPORT.value:
    study.check_inputs(inputs, jobs)
    folder.claim(name, budget)
    jobs = run_study(study, budget, inputs, folder, jobs, _JOBS.value, repository_commit())
  analysis = analysis_of(study, budget, jobs, folder)
  write_whole(folder.root / "analysis.json", json.dumps(analysis, indent=1) + "\n")
  print("\n".join(lines_of(study, analysis)))
  print(f"written to {folder.root / 'analysis.json'}")
  if analysis["failed"]:
    sys.exit(1)


if __name__ == "__main__":
  commands.run(main)
