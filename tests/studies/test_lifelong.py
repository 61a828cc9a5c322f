"""The study of a growing model: which runs it makes of which, and what it makes of their losses."""

import pytest

from moe.config import ConfigError
from moe.studies.claims.transfer.lifelong import BUDGETS, Lifelong
from moe.studies.study import Conversion, Inputs, Result
from moe.training.experiment import load_config

TEXTS = ("wiki", "novels", "books")


@pytest.fixture
def inputs(tmp_path):
  for name in TEXTS:
    (tmp_path / f"{name}.jsonl.xz").touch()
  return Inputs(",".join(str(tmp_path / f"{name}.jsonl.xz") for name in TEXTS), "", tokens=str(tmp_path / "tokens"))


def runs(inputs, budget="cpu"):
  return {job.name: job for job in Lifelong().jobs(budget, inputs, []) if not job.measure}


def test_texts_are_read_in_the_order_given_and_each_stage_begins_with_the_one_before(inputs):
  jobs = runs(inputs)
  stages = [f"dense/seed-1/{stage}-{text}" for stage, text in enumerate(TEXTS)]
  assert [jobs[name].source for name in stages] == ["", *stages[:-1]]
  assert [jobs[name].config["data"]["source"]["path"].split("/")[-1] for name in stages] == [
    "0-wiki",
    "1-novels",
    "2-books",
  ]
  assert jobs["joint/seed-1/joint"].config["train"]["steps"] == sum(
    jobs[name].config["train"]["steps"] for name in stages
  )
  assert len(jobs) == 3 * (3 + 3 + 2 + 2 + 1)


def test_a_growing_arm_begins_with_the_first_stage_of_the_other_and_freezes_what_was_there(inputs):
  jobs = runs(inputs)
  for arm, weight in (("grown", 1.0), ("grown_free", 0.0)):
    second, third = (jobs[f"{arm}/seed-0/{stage}"] for stage in ("1-novels", "2-books"))
    assert second.source == "continued/seed-0/0-wiki" and third.source == second.name
    for job, experts in ((second, 8), (third, 12)):
      assert job.conversion == Conversion("grow", {"model.decoder.moe.num_experts": experts + 4})
      assert job.config["model"]["decoder"]["moe"]["num_experts"] == experts + 4
      assert job.config["optimizer"]["frozen"] == [f"moe/(experts|router/kernel)@{experts}"]
      assert (job.config.get("init") or {}).get("kl_loss", 0.0) == weight
  assert not any(job.conversion for name, job in jobs.items() if not name.startswith("grown"))


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_configs_are_valid_and_of_equal_activated_width(budget, inputs):
  for job in runs(inputs, budget).values():
    init = {"init": job.config["init"] | {"workdir": "source"}} if job.config.get("init") else {}
    model = load_config({**job.config, **init}).model
    moe = model.decoder.moe
    assert moe is None or moe.router.top_k * moe.d_ff == model.d_ff


def test_one_text_is_refused_and_so_are_other_texts_than_the_first(inputs, tmp_path):
  one = Inputs(inputs.text.split(",")[0], "", tokens=inputs.tokens)
  with pytest.raises(ConfigError, match=r"--text = .*: expected to match from two to ten files"):
    Lifelong().jobs("cpu", one, [])
  (tmp_path / "texts" / "0-a.partk3j2").mkdir(parents=True)  # of a tokenization that was killed
  Lifelong().check_inputs("smoke", inputs)
  (tmp_path / "texts" / "0-poems").mkdir()
  with pytest.raises(ConfigError, match=r"--text = .*: expected the texts that this --workdir has begun with: 0-poems"):
    Lifelong().check_inputs("smoke", inputs)


def measured(arm, seed, stage, losses):
  texts = [f"{number}-{text}" for number, text in enumerate(TEXTS)]
  tags = {"arm": arm, "seed": seed, "stage": stage, "texts": texts, "blocks": 1}
  return Result("", tags, {"measure": "lifelong"}, "", 1, 0, {}, {}, measured={"losses": dict(zip(texts, losses))})


def test_forgetting_is_the_mean_rise_of_the_losses_on_earlier_texts_since_their_own_stage():
  """Continued: (3.5 - 3.0 + 3.9 - 3.7) / 2 = 0.35; grown, from the same stage: (3.1 - 3.0 + 3.8 - 3.7) / 2 = 0.1."""
  results = []
  for seed in range(3):
    rise = 0.01 * seed
    results += [
      measured("continued", seed, 0, (3.0, 4.0, 4.0)),
      measured("continued", seed, 1, (3.4, 3.7, 4.1)),
      measured("continued", seed, 2, (3.5 + 3 * rise, 3.9, 3.6)),
      measured("grown", seed, 1, (3.0, 3.7, 4.0)),
      measured("grown", seed, 2, (3.1, 3.8 + rise, 3.7 - rise)),
      measured("joint", seed, 0, (3.2, 3.6, 3.7)),
    ]
  analysis = Lifelong().analyse("cpu", results)
  assert analysis["forgetting"]["continued"] == pytest.approx([0.35, 0.365, 0.38])
  assert analysis["forgetting"]["grown"] == pytest.approx([0.1, 0.105, 0.11])
  first, *others = analysis["contrasts"]
  assert first["value"] == pytest.approx(0.26) and first["verdict"] == "held"
  assert (
    Lifelong().headline(analysis).number.startswith("grown forgets less than continued, in nats per token: +0.2600")
  )
  in_the_end, newest = others
  assert in_the_end["value"] == pytest.approx((3.53 + 3.9 + 3.6) / 3 - (3.1 + 3.81 + 3.69) / 3)
  assert newest["value"] == pytest.approx(-0.09) and newest["verdict"] == "did not hold"
  lines = Lifelong().lines(analysis)
  assert "| grown | books | 22.2 | 45.2 | 40.0 | +0.105 |" in lines
  assert "| joint | all together | 24.5 | 36.6 | 40.4 |  |" in lines


def test_a_study_in_progress_says_what_it_has():
  analysis = Lifelong().analyse("cpu", [measured("continued", 0, 0, (3.0, 4.0, 4.0))])
  assert analysis["contrasts"] == [] and Lifelong().headline(analysis) is None
  assert not any(line.startswith("|") for line in Lifelong().lines(analysis))
