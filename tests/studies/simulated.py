"""Results of a study whose truth is known."""

import json
import math

from moe.studies.reporting.results_file import analysis_of, file_text
from moe.studies.running.folder import Folder
from moe.studies.study import Job, Result, Study

BLOCKS = 4
STEPS = (100, 200, 300, 400)


def simulated_analysis(tmp_path, name, losses, *, seeds=3, twins=(), budget="cpu"):
  """The content of the results file of a study of language models, as read from its text.

  Args:
    tmp_path: a folder to put the study's results in.
    name: of the study.
    losses: by arm the final loss; that of seed s is 0.1 * s higher in all arms, and 0.001 * s * i more in the i-th one.
    seeds: number of them.
    twins: arms whose causal twins lose 0.05 more.
    budget: of the study.
  """
  study, folder = Study.choices[name](), Folder(tmp_path / f"{name}-{budget}")
  jobs = []
  for place, (arm, loss) in enumerate(losses.items()):
    for seed in range(seeds):
      job = simulated_job(arm, seed)
      final = loss + 0.1 * seed + 0.001 * seed * place
      folder.write_result(_result(job, final, arm in twins))
      jobs.append(job)
  analysis = json.loads(file_text(analysis_of(study, budget, jobs, folder)))
  return study, analysis


def simulated_job(arm, seed):
  return Job(f"{arm}/seed-{seed}", _config(arm, seed), tags={"arm": arm, "seed": seed, "rate": 0.01})


def _config(arm, seed):
  return {"seed": seed, "model": {"d_model": 8, "router": None if arm == "dense" else {"name": arm}}, "data": _DATA}


_DATA = {"source": {"name": "tokens", "path": "/here"}, "batch_size": 4}


def _result(job, final, twin):
  blocks = {"own": [final - 0.01, final + 0.01] * (BLOCKS // 2)}
  if twin:
    blocks["causal"] = [loss + 0.05 for loss in blocks["own"]]
  return Result(
    job.name,
    dict(job.tags),
    job.compared,
    "0123",
    60.0,
    STEPS[-1],
    {"loss": final},
    {},
    curve=[{"step": step, "loss": final + math.log(STEPS[-1] / step)} for step in STEPS],
    blocks=blocks,
    flops=1e12,
    parameters=1000,
  )
