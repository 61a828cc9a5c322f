"""Answers of a checkpoint: ranked and decoded ones agree where a task is known by heart, and files are written once."""

import dataclasses
import json
import types

import pytest

from moe.config import ConfigError
from moe.evaluation.restore import restore
from moe.evaluation.scoring.answers import is_batch_independent
from moe.evaluation.scoring.checkpoint import answer_split
from moe.evaluation.scoring.hook import ScoreHook
from moe.training.experiment import ScoreConfig
from moe.training.trainer import train
from tests.evaluation.scoring.tasks import BYTES, LABELS, STEPS, Task, config, run_config, task
from tests.slow import first_ones


@pytest.fixture(scope="module", params=first_ones(1, ["inputs and targets", "targets"]))
def trained(request, tmp_path_factory):
  """The best step of a run that knows its task by heart, in either row format."""
  if request.param == "inputs and targets":
    return restore(request.getfixturevalue("memorised").root)
  longer = STEPS | {"steps": 200, "eval_every": 200, "checkpoint_every": 200}
  folder, settings = tmp_path_factory.mktemp("decoder"), run_config(longer, decoder_only=True)
  train(settings, folder, score=ScoreHook(settings, BYTES, [task()]))
  return restore(folder)


def answers(trained, tasks, split="validation", **score):
  """The answers of the one task, scored in another way than the run's if fields of the section are given."""
  section = ScoreConfig(batch_size=8, **score)
  config = dataclasses.replace(trained.config, score=section)
  (found,) = answer_split(dataclasses.replace(trained, config=config), config.data, split, tasks)
  return found


def test_ranked_and_decoded_answers_agree_on_a_task_that_is_known_by_heart(trained):
  ranked, decoded = answers(trained, [task()]), answers(trained, [task()], method="decode")
  assert [one.text for one in ranked.answers] == [one.text for one in decoded.answers]
  assert [one.text for one in decoded.answers] == [LABELS[number % 3] for number in range(12)]
  assert ranked.score() == decoded.score() and ranked.score().value == 1
  assert all(len(one.scores) == 3 for one in ranked.answers) and all(one.scores == () for one in decoded.answers)


def test_decoded_text_is_free_and_needs_no_labels(trained):
  found = answers(trained, [dataclasses.replace(task(), labels=())], method="decode")
  assert [one.text for one in found.answers] == [LABELS[number % 3] for number in range(12)]


def test_only_the_first_examples_are_answered_if_so_many_are_asked_for(trained):
  found = answers(trained, [task()], examples=5)
  assert len(found.answers) == 5 and found.score().n == 5


def test_a_file_for_a_server_has_every_example_however_few_are_scored(trained):
  pairs = [(example.text, None) for example in task().examples("validation")]
  assert len(answers(trained, [Task({"test": pairs})], "test", examples=5).answers) == 12


def test_where_labels_are_hidden_the_servers_file_is_written_and_nothing_is_scored(trained, tmp_path):
  pairs = [(example.text, None) for example in task().examples("validation")]
  found = answers(trained, [Task({"test": pairs})], "test")
  assert found.split.metric == ""
  predictions, file = found.write(tmp_path / "predictions", 60)
  assert file == tmp_path / "predictions" / "step-60" / "animals.tsv"
  assert file.read_text() == "".join(f"{number}\t{number % 3}\n" for number in range(12))
  assert predictions.name == "step-60-animals-test.jsonl"
  assert json.loads(predictions.read_text().splitlines()[1])["label"] is None


def test_predictions_never_replace_earlier_ones(trained, tmp_path):
  found = answers(trained, [task()])
  names = [path.name for _ in range(3) for path in found.write(tmp_path, 7)]
  assert names == [f"step-7-animals-validation{number}.jsonl" for number in ("", "-2", "-3")]


def test_a_run_without_a_section_score_has_no_answers(trained):
  unscored = dataclasses.replace(trained.config, score=None)
  assert answer_split(dataclasses.replace(trained, config=unscored), unscored.data, "validation") == []


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
  settings = config(score={"batch_size": 5})

  mesh = types.SimpleNamespace(shape={"data": 2, "expert": 1, "model": 1})
  with pytest.raises(ConfigError, match=r"^config.score.batch_size = 5: expected rows per micro-batch to be a"):
    settings.check_mesh(mesh)


@pytest.mark.parametrize(
  ("fields", "independent"),
  [
    ({}, True),
    ({"encoder": {"name": "expert_choice"}}, False),
    ({"encoder": {"name": "expert_choice", "group_size": 8}}, True),
    ({"encoder": {"name": "gshard"}}, False),
    ({"decoder": {"name": "switch"}}, True),
    ({"decoder": {"name": "position_grouped"}}, False),
    ({"decoder": {"name": "position_grouped"}, "score": {"method": "decode"}}, True),
  ],
)
def test_whether_an_answer_depends_on_its_batch_is_said(fields, independent):
  assert is_batch_independent(config(**fields)) == independent
