"""Replicates a published claim.

    python -m moe.study --study convergence --budget cpu --workdir runs/studies --text "text/*.jsonl.xz"

Runs what is missing of the study's runs, each an ordinary run in a folder of its own, and writes what they say to
`STUDY-BUDGET.json` in the workdir, with a figure beside it; studies of the same models share their runs. The same
command resumes after a stop or a crash, and nothing is lost. `--dry_run` lists what is missing, `--report` alone
analyses what is there, and needs no text. A run that fails is reported at the end, with exit code 1; the others
continue, and the next command retries it.

`--runner slurm` sends each run that can be started to Slurm, as a job with one GPU, and `--runner "xpk CLUSTER --zone
ZONE --tpu-type v5litepod-8"` to a slice of one host; what follows the first word are arguments of the script in
`scripts/launch`. Workdir and data must have the same paths on all machines, this one too. The same command later sends
what has become ready or has failed. What was sent before is not sent again; if it was cancelled, or the engine has lost
it, delete its file in the workdir's folder `sent`. Each job is this command with `--only NAME`, which makes one run.

Pretraining text, tasks and pictures are the reader's own: `--text` is a glob of text files, or a token directory, and
the same for all runs that share a folder; `--data_dir` is a TFDS directory, or for `movielens` the folder of
MovieLens-100k. The study `lifelong` reads the files one after the other; commas may separate globs. With `--pretrained
WORKDIR` nothing is pretrained, and the study says how that one model does on its tasks. `--arm mine='{"name":
"my_router"}'` adds a method to a study of language models, or of pictures: a router's config section, or the fields of
`moe.studies.arms.Arm`. `--known results/studies` takes the runs of published results, where text and configs are the
same, and makes only the others.
"""

import os
import signal
import sys

from absl import flags

from moe import commands
from moe.config import require

_STUDY = flags.DEFINE_string("study", None, "Name of the study.", required=True)
_BUDGET = flags.DEFINE_string("budget", "cpu", "How large it is: one of the study's budgets.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study's runs.", required=True)
_TEXT = flags.DEFINE_string("text", "", "Glob of text files, or several with commas; or a token directory.")
_DATA_DIR = flags.DEFINE_string(
  "data_dir", "", "TFDS directory of tasks or pictures, empty for its default; or the folder of ratings."
)
_PRETRAINED = flags.DEFINE_string("pretrained", "", "Workdir of a run to take instead of pretraining.")
_ARM = flags.DEFINE_multi_string("arm", [], "NAME=VALUES, a method beside the study's own; may be repeated.")
_KNOWN = flags.DEFINE_string("known", "", "Folder of results files, whose runs of this study are not run again.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time, each on a core; they share a GPU.", lower_bound=1)
_RUNNER = flags.DEFINE_string("runner", "local", "local; or slurm or xpk, and arguments of its launch script.")
_ONLY = flags.DEFINE_string("only", "", "Name of the one run to make, in place of all that are missing.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "List what is missing, or print the engine's commands; run nothing.")
_REPORT = flags.DEFINE_bool("report", False, "Only analyse what is there.")


def main() -> None:
  from moe.files import local_path, write_whole
  from moe.studies import Study
  from moe.studies.arms import parse_arm
  from moe.studies.reporting.results_file import analysis_of, file_text, lines_of
  from moe.studies.repository import repository_commit
  from moe.studies.running.campaign import Campaign, published_results
  from moe.studies.running.engine import LOCAL, parse_runner, send
  from moe.studies.running.folder import Folder, studies_folder, text_files
  from moe.studies.running.worker import run_one
  from moe.studies.study import Inputs, Result

  name, budget, dry = _STUDY.value, _BUDGET.value, _DRY_RUN.value
  require(name in Study.choices, "--study", name, f"expected one of {', '.join(Study.choices)}")
  study = Study.choices[name]()
  require(budget in study.budgets, "--budget", budget, f"expected one of {', '.join(study.budgets)}")
  require(study.takes_arms or not _ARM.value, "--arm", " ".join(_ARM.value), f"expected none: {name} takes no others")
  given = bool(_TEXT.value) != bool(_PRETRAINED.value) or (_REPORT.value and not _PRETRAINED.value)
  wanted = "expected a glob of text files to pretrain on, or else --pretrained WORKDIR"
  require(given or "text" not in study.reads, "--text", _TEXT.value, wanted)
  if _JOBS.value > 1:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or the first process takes most of a GPU
  root = studies_folder(_WORKDIR.value)
  data_dir, pretrained = (
    str(local_path(f"--{flag.name}", flag.value)) if flag.value else "" for flag in (_DATA_DIR, _PRETRAINED)
  )
  text = ",".join(str(local_path("--text", part)) for part in _TEXT.value.split(",")) if _TEXT.value else ""
  runner, arguments = parse_runner(_RUNNER.value)
  require(runner == LOCAL or _JOBS.value == 1, "--jobs", _JOBS.value, f"expected 1 with --runner={runner}")
  folder = Folder(root / f"{study.runs}-{budget}")
  tokens = text if os.path.isdir(text) else str(folder.root / "tokens")
  inputs = Inputs(text, data_dir, pretrained, tokens, dict(map(parse_arm, _ARM.value)))
  read = {"text": text_files(text)} | ({} if _REPORT.value else {"data_dir": study.data_read(budget, inputs)})
  folder.check(study.runs, budget, read, may_be_new=not _REPORT.value)
  published: dict[str, Result] = {}
  if _KNOWN.value:
    published = published_results(study, budget, local_path("--known", _KNOWN.value), read | folder.read)
  campaign = Campaign(study, budget, inputs, folder, published)
  wanted = f"expected a folder with results of {study.runs} with --budget={budget}, of these configs and this text"
  require(not _KNOWN.value or bool(campaign.results), "--known", _KNOWN.value, wanted)
  if not _REPORT.value:
    campaign.take_back_sources()
  chosen = [job for job in campaign.jobs if _ONLY.value in ("", job.name)]
  require(bool(chosen), "--only", _ONLY.value, "expected one of the study's runs, which --dry_run lists")
  print(f"{study.name}: {study.claim} ({study.source})")
  if budget in study.planned or (dry and runner == LOCAL):
    print("".join(f"{job.name}: {job.about}\n" for job in folder.missing(chosen)), end="")
  if budget in study.planned:
    print(f"budget {budget} is planned only: these {len(campaign.jobs)} runs and more, and none was started")
    return
  print(campaign.progress(_JOBS.value), flush=True)
  if not _REPORT.value:
    study.check_inputs(budget, inputs)
    if not dry:
      folder.claim(study.runs, budget)
      with folder.alone():
        study.prepare(inputs)
      folder.claim(study.runs, budget, read)  # now that it could be read
    if runner != LOCAL:
      which = {"study": name, "budget": budget, "workdir": str(root), "text": text, "data_dir": data_dir}
      which |= {"pretrained": pretrained}
      command = [f"--{flag}={value}" for flag, value in which.items() if value] + [f"--arm={arm}" for arm in _ARM.value]
      send(folder, chosen, runner, arguments, command, repository_commit(), dry=dry)
    elif _ONLY.value and not dry:
      if not run_one(folder, chosen[0], repository_commit()):
        sys.exit(128 + signal.SIGTERM)  # 0 would tell a cluster that the run is finished
      print(f"{_ONLY.value} is finished")
      return
    elif not dry:
      campaign.run(_JOBS.value, repository_commit())
  if dry:
    return
  analysis = analysis_of(study, budget, campaign.jobs, folder)
  path = root / f"{name}-{budget}.json"
  write_whole(path, file_text(analysis))
  print("\n".join(lines_of(study, analysis)))
  figure = path.with_suffix(".png")
  print(f"written to {path}{f' and {figure}' if study.draw(analysis, figure) else ''}")
  if analysis["failed"]:
    sys.exit(1)


if __name__ == "__main__":
  commands.run(main)
