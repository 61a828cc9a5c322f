"""The study of upcycling: which runs it makes of which."""

import math

from moe.studies.claims.transfer.upcycling import Upcycling
from moe.studies.language_models import TUNING
from moe.studies.study import Inputs, Result

INPUTS = Inputs("text", "", tokens="tokens")


def tuned(arm, losses):
  return [
    Result(f"{arm}/{rate}", {"arm": arm, "rate": rate, "seed": TUNING}, {}, "", 1.0, 1, {"loss": loss}, {})
    for rate, loss in losses.items()
  ]


def test_the_dense_model_is_tuned_first_and_all_but_the_one_from_scratch_begin_with_it():
  study, dense = Upcycling(), tuned("dense", {0.01: 3.0, 0.02: 2.8, 0.04: math.inf})
  assert {job.tags["arm"] for job in study.jobs("cpu", INPUTS, dense[:2])} == {"dense"}
  others = tuned("upcycled", {0.005: 2.1, 0.01: 2.0, 0.02: 2.1, 0.04: 2.2})
  others += tuned("scratch", {0.01: 2.2, 0.02: 2.1, 0.04: 2.0, 0.08: 2.1})
  jobs = {job.name: job for job in study.jobs("cpu", INPUTS, dense + others)}
  source = jobs["dense/rate-0.02/seed-1"]
  upcycled, scratch = jobs["upcycled/rate-0.01/seed-1"], jobs["scratch/rate-0.04/seed-1"]
  continued = jobs["dense_continued/rate-0.02/tuning"]
  assert (upcycled.source, scratch.source, continued.source) == (source.name, "", "dense/rate-0.02/tuning")
  assert upcycled.conversion.verb == "upcycle" and scratch.conversion is continued.conversion is None
  assert upcycled.conversion.fields == {"model.decoder.moe": upcycled.config["model"]["decoder"]["moe"]}
  assert [job.config["train"]["steps"] for job in (source, upcycled, scratch, continued)] == [1000, 500, 500, 500]


def test_upcycled_experts_are_as_wide_as_the_dense_network_and_what_follows_is_new_and_the_same_for_all():
  jobs = {job.tags["arm"]: job for job in Upcycling().jobs("smoke", INPUTS, [])}
  assert set(jobs) == {"dense", "upcycled", "scratch"}
  configs = {arm: job.config for arm, job in jobs.items()}
  assert configs["upcycled"] == configs["scratch"]
  assert configs["upcycled"]["model"]["decoder"]["moe"]["d_ff"] == configs["dense"]["model"]["d_ff"]
  assert configs["upcycled"]["data"]["seed"] != configs["dense"]["data"]["seed"]
  assert configs["upcycled"]["data"]["source"] == configs["dense"]["data"]["source"]
