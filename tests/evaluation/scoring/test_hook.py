"""Runs that score a task: what they record, which step is chosen, and that a kill loses no score."""

import dataclasses
import json

import pytest

from moe.config import ConfigError, as_mapping
from moe.data import DataError
from moe.evaluation.restore import kept_steps, restore
from moe.evaluation.scoring.answers import read_split
from moe.evaluation.scoring.hook import ScoreHook
from moe.evaluation.scoring.results import read_scores, selections, write_scores
from moe.training.experiment import load_config
from moe.training.metrics_file import read_metrics
from moe.training.trainer import train
from moe.training.workdir import Workdir
from tests.evaluation.scoring.tasks import BYTES, LABELS, Task, config, run_config, task
from tests.training.test_trainer import signal_after
from tests.training.tiny import Interrupt, interrupt_after


def test_a_run_that_memorises_its_task_answers_everything(memorised):
  found = json.loads(memorised.scores.read_text())
  assert found["method"] == "rank" and found["selection"] == "held_out" and found["batch_independent"]
  assert list(found["steps"]) == ["20", "40", "60"]
  for name in ("held_out", "published"):
    of_task = found[name]["validation"]["tasks"]["animals"]
    assert of_task["score"] == 1 and of_task["n"] == 12 and of_task["majority"] == pytest.approx(1 / 3)
    assert of_task["interval"][1] == 1 and of_task["metrics"] == {"accuracy": 1, "yes": pytest.approx(1 / 3)}
  assert found["held_out"]["step"] == restore(memorised.root).step


def test_scores_are_ordinary_records(memorised):
  records = {(one["step"], one["kind"]): one for one in read_metrics(memorised.metrics)}
  for kind in ("score/held_out", "score/validation"):
    assert records[60, kind]["mean"] == records[60, kind]["animals/accuracy"] == 1


def test_the_prediction_of_every_validation_example_is_kept(memorised):
  step = json.loads(memorised.scores.read_text())["held_out"]["step"]
  path = memorised.predictions / f"step-{step}-animals-validation.jsonl"
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line["input"] for line in lines] == [example.text for example in task().examples("validation")]
  assert all(line["prediction"] == line["label"] and line["text"] == LABELS[line["label"]] for line in lines)
  for line in lines:
    assert list(line["options"]) == list(LABELS) and max(line["options"], key=line["options"].get) == line["text"]
    assert all(score < 0 for score in line["options"].values())


def planted(held_out, validation):
  """A hook whose scores are these in turn."""

  def score(run, info):
    if info.validate:
      number = info.step // run.config.train.eval_every - 1
      values = {"score/held_out": held_out[number], "score/validation": validation[number]}
      for kind, value in values.items():
        about = {"metric": "accuracy", "accuracy": value, "interval": [0.0, 1.0], "majority": 0.5, "n": 8}
        named = {f"animals/{name}": of_task for name, of_task in about.items()}
        run.record(info.step, kind, {"mean": value, "tasks": ["animals"]} | named)

  return score


SHORT = {"steps": 10, "log_every": 10, "eval_every": 2, "eval_batches": 1, "checkpoint_every": 10, "keep": 1}
HELD_OUT, VALIDATION = [0.5, 0.75, 0.75, 0.5, 0.25], [0.25, 0.5, 0.375, 0.625, 0.5]


@pytest.mark.parametrize(("selection", "best"), [("held_out", 6), ("published", 8)])
def test_the_chosen_step_has_the_highest_score_and_its_checkpoint_survives(tmp_path, selection, best):
  """Of two equal scores the later; the loss, which falls all the time, has no say."""
  settings = run_config(SHORT, selection=selection)
  train(settings, tmp_path, score=planted(HELD_OUT, VALIDATION))
  assert kept_steps(tmp_path) == [best, 10] and restore(tmp_path).step == best
  write_scores(settings, Workdir(tmp_path))
  found = json.loads((tmp_path / "scores.json").read_text())
  assert found["held_out"]["step"] == 6 and found["held_out"]["validation"]["mean"] == 0.375
  assert found["published"]["step"] == 8 and found["published"]["validation"]["mean"] == 0.625
  assert found["held_out"]["held_out"]["tasks"]["animals"]["score"] == 0.75


def test_a_score_that_a_signal_prevented_is_made_up_for_and_is_its_checkpoints_criterion(tmp_path):
  """The signal comes when step 6 is computed, which is then saved without a score."""
  settings = run_config(SHORT)
  train(settings, tmp_path, [signal_after(5)], planted(HELD_OUT, VALIDATION))
  assert kept_steps(tmp_path) == [4, 6] and restore(tmp_path).step == 4
  train(settings, tmp_path, score=planted(HELD_OUT, VALIDATION))
  assert kept_steps(tmp_path) == [6, 10] and restore(tmp_path).step == 6
  assert selections(read_scores(Workdir(tmp_path))) == {"held_out": 6, "published": 8}


def test_a_run_that_was_cut_off_keeps_the_scores_from_before(memorised, tmp_path):
  settings = run_config()
  with pytest.raises(Interrupt):
    train(settings, tmp_path, [interrupt_after(45)], ScoreHook(settings, BYTES, [task()]))
  assert list(json.loads((tmp_path / "scores.json").read_text())["steps"]) == ["20", "40"]
  (tmp_path / "scores.json").unlink()
  train(settings, tmp_path, score=ScoreHook(settings, BYTES, [task()]))
  assert json.loads((tmp_path / "scores.json").read_text()) == json.loads(memorised.scores.read_text())
  assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == sorted(
    path.name for path in memorised.predictions.iterdir()
  )


def test_every_task_of_a_mixture_is_scored_and_their_mean_chooses_the_step(tmp_path, capsys):
  settings = run_config(SHORT | {"steps": 2}, selection="published")
  others = [dataclasses.replace(task(count), name=name) for count, name in ((5, "first"), (12, "second"))]
  train(settings, tmp_path, score=ScoreHook(settings, BYTES, others))
  (record,) = (one for one in read_metrics(tmp_path / "metrics.jsonl") if one["kind"] == "score/validation")
  assert record["first/n"] == 5 and record["second/n"] == 12
  assert record["mean"] == pytest.approx((record["first/accuracy"] + record["second/accuracy"]) / 2)
  found = json.loads((tmp_path / "scores.json").read_text())
  assert found["held_out"] is None and list(found["published"]["validation"]["tasks"]) == ["first", "second"]
  assert f"score at step 2: mean of 2 tasks, validation {record['mean']:.4f}" in capsys.readouterr().err
  assert len(list((tmp_path / "predictions").iterdir())) == 2
  saved = json.loads((tmp_path / "checkpoints" / "2" / "run" / "metadata").read_text())
  assert saved["criterion"] == -record["mean"]


def test_a_held_out_tenth_is_not_trained_on():
  assert run_config().training_data.source.train_split == "train[:90%]"
  assert run_config(selection="published").training_data.source.train_split == "train"


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (
      {"labels": ()},
      r"^config.score.method = 'rank': expected 'decode', or config.score.labels: any text can be the",
    ),
    (
      {"labels": ("no", "a very long answer")},
      r"^config.data.targets_length = 16: expected at least 19, .*'a very lo",
    ),
  ],
)
def test_labels_that_cannot_be_ranked_are_refused(changes, said):
  with pytest.raises(ConfigError, match=said):
    read_split(run_config(), BYTES, dataclasses.replace(task(), **changes), "validation")


def test_labels_that_a_task_does_not_have_are_refused_and_a_part_of_its_own_will_do():
  """No answer would be right."""
  with pytest.raises(
    ConfigError, match=r"^config.score.labels = \('no', 'maybe'\): expected some of no, yes, it is, as"
  ):
    read_split(run_config(labels=["no", "maybe"]), BYTES, task(), "validation")
  assert read_split(run_config(labels=["yes", "no"]), BYTES, task(), "validation").labels == ("yes", "no")


def test_an_unknown_metric_is_refused_with_those_there_are():
  with pytest.raises(ConfigError, match=r"^config.score.metric = 'f1': expected one of accuracy, yes, the metrics of"):
    read_split(run_config(metric="f1"), BYTES, task(), "validation")
  assert read_split(run_config(metric="yes"), BYTES, task(), "validation").metric == "yes"


def test_a_metric_with_a_name_that_a_record_needs_is_refused():
  class Counting(Task):
    def evaluate(self, targets, predictions):
      return {"n": len(targets)}

  with pytest.raises(ConfigError, match=r"^config.data.source.task = 'animals': expected no metric by the name of n$"):
    read_split(run_config(), BYTES, Counting(task().splits), "validation")


def test_a_split_that_is_missing_or_empty_is_refused():
  with pytest.raises(DataError, match="split 'train': expected one of train"):
    read_split(run_config(), BYTES, task(), "train")
  with pytest.raises(DataError, match="split 'none': holds no example of task animals"):
    read_split(run_config(), BYTES, Task({"none": []}), "none")


def test_a_split_with_hidden_labels_cannot_be_scored():
  hidden = Task({"train[90%:]": [("a", 0)], "validation": [("a", 0), ("b", None)]})
  with pytest.raises(DataError, match="split 'validation': hides labels of task animals: nothing can be scored on it"):
    ScoreHook(run_config(), BYTES, [hidden])


@pytest.mark.parametrize(
  ("section", "fields", "said"),
  [
    ("data", {"source": {"name": "text", "path": "x"}}, r"^config.data.source.name = 'text': expected 'task', since"),
    (
      "data",
      {"objective": "prefix_lm"},
      r"^config.data.objective.name = 'prefix_lm': expected an objective that reads",
    ),
    (
      "data",
      {"source": {"name": "task", "task": "a", "train_split": "train[:5]"}},
      r"^config.data.source.train_split =",
    ),
    ("score", {"labels": ["yes"]}, r"^config.score.labels = \('yes',\): expected at least two texts"),
    ("score", {"labels": ["no", "yes"], "method": "decode"}, r"^config.score.labels = .*: expected none unless"),
    ("score", {"examples": -1}, r"^config.score.examples = -1: expected at least 0"),
  ],
)
def test_a_section_that_cannot_score_is_refused(section, fields, said):
  mapping = as_mapping(config())
  with pytest.raises(ConfigError, match=said):
    load_config(mapping | {section: mapping[section] | fields})


def test_a_decoder_that_sees_later_tokens_cannot_decode():
  mapping = as_mapping(config(decoder={"name": "expert_choice"}))
  with pytest.raises(ConfigError, match=r"^config.model.decoder.moe.router.name = 'expert_choice': expected a causal"):
    load_config(mapping | {"score": {"method": "decode"}})
  assert load_config(mapping | {"score": {"method": "rank"}}).score.method == "rank"


def test_a_section_without_a_hook_is_a_mistake_of_the_caller(tmp_path):
  with pytest.raises(ValueError, match="expected a hook"):
    train(run_config(), tmp_path)
