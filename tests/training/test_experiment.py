import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from moe.config import ConfigError, as_mapping, differences
from moe.training.experiment import load_config
from moe.training.optimization.optimizer import Adafactor
from moe.training.optimization.schedule import ConstantRsqrt
from moe.training.workdir import Workdir, WorkdirError
from tests.training.tiny import changed, tiny_config, tiny_decoder, tiny_mapping


def test_a_config_dict_and_the_mapping_it_is_saved_as_mean_the_same(corpus):
  config = load_config(ConfigDict(tiny_mapping(corpus)))
  assert config == tiny_config(corpus)
  assert load_config(json.loads(json.dumps(as_mapping(config)))) == config


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    ("train.accumulation", 3, "expected a divisor of data.batch_size = 4"),
    ("train.steps", 0, "expected at least 1"),
    ("train.kep", 1, "unknown field"),
    ("train.logits_z_loss", -1.0, "expected at least 0"),
    ("optimizer.schedule.warmup_steps", 13, "expected at most train.steps = 12"),
    ("optimizer.name", "sgd", "expected one of adafactor, adamw"),
    ("optimizer.b1", 0.9, "unknown field; Adafactor has"),
    ("optimizer.schedule", {"name": "step"}, "expected one of constant, constant_rsqrt, cosine, linear"),
    ("optimizer.schedule.final_fraction", 0.1, "unknown field; Constant has"),
    ("seed", -1, "expected at least 0"),
    ("seed", 2**32, "expected a whole number of at most 32 bits"),
    ("model.decoder.moe", {"num_experts": 4, "router": "expert_choice"}, "not causal"),
  ],
)
def test_a_wrong_field_is_one_line_with_its_full_name(corpus, path, value, said):
  with pytest.raises(ConfigError) as error:
    load_config(changed(corpus, path, value))
  assert str(error.value).startswith(f"config.{path}") and said in str(error.value)
  assert "\n" not in str(error.value)


def test_an_objective_without_inputs_needs_a_model_that_reads_none(corpus):
  mapping = tiny_mapping(corpus)
  mapping["data"] |= {"objective": "causal_lm", "inputs_length": 0}
  with pytest.raises(ConfigError, match=r"^config.data.objective.name = 'causal_lm': .* the model reads inputs"):
    load_config(mapping)
  mapping["model"] = tiny_decoder(mapping)
  assert load_config(mapping).model.stack_lengths(0, 16) == {"decoder": 16}


def test_an_empty_optimizer_section_means_adafactor_with_its_published_schedule(corpus):
  mapping = tiny_mapping(corpus)
  for section in ({"optimizer": {}}, {"optimizer": "adafactor"}):
    assert load_config(mapping | section).optimizer == Adafactor(schedule=ConstantRsqrt())
  del mapping["optimizer"]
  assert load_config(mapping).optimizer == Adafactor()


def test_the_routing_group_must_divide_a_micro_batch_not_the_batch(corpus):
  """Batch 4 of 16 inputs: a group of 64 fits, until two micro-batches make it 32 tokens each."""
  mapping = changed(corpus, "model.encoder.moe.router", {"name": "expert_choice", "group_size": 64})
  load_config(mapping)
  mapping["train"]["accumulation"] = 2
  with pytest.raises(ConfigError, match=r"^config.model.encoder.moe.router.group_size = 64: .* 2 x 16 = 32"):
    load_config(mapping)


def test_a_model_can_be_evaluated_on_batches_that_it_could_not_be_trained_with(corpus):
  config = load_config(changed(corpus, "model.encoder.moe.router", {"name": "expert_choice", "group_size": 64}))
  other = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=3))
  with pytest.raises(ConfigError, match=r"^config.model.encoder.moe.router.group_size = 64: .* 3 x 16 = 48"):
    load_config(as_mapping(other))


def test_a_decoders_group_is_of_inputs_and_targets_together(corpus):
  mapping = tiny_mapping(corpus)
  router = {"name": "expert_choice", "group_size": 128}
  mapping["model"] = tiny_decoder(mapping, router, allow_future_leakage=True)
  load_config(mapping)
  router["group_size"] = 256
  with pytest.raises(ConfigError, match=r"decoder.moe.router.group_size = 256: .* 4 x 32 = 128"):
    load_config(mapping)


def test_differences_name_every_field_with_both_values():
  old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
  assert differences(old, new) == {"config.a.c": (2, 5), "config.d": (3, None), "config.e": (None, 4)}


def test_a_workdir_accepts_the_same_config_again(tmp_path, corpus):
  for _ in range(2):
    workdir = Workdir(tmp_path / "run")
    workdir.check(tiny_config(corpus))
    workdir.claim(tiny_config(corpus))
  assert workdir.load_config() == tiny_config(corpus)


def test_the_workdir_of_another_config_is_refused_with_all_fields_that_differ(tmp_path, corpus):
  workdir = Workdir(tmp_path)
  workdir.claim(tiny_config(corpus))
  mapping = changed(corpus, "model.d_ff", 64) | {"seed": 9}
  with pytest.raises(WorkdirError) as error:
    workdir.check(load_config(mapping))
  assert "config.model.d_ff was 32, is 64" in str(error.value) and "config.seed was 3, is 9" in str(error.value)
  assert workdir.load_config() == tiny_config(corpus)


def test_fields_that_change_no_number_may_differ(tmp_path, corpus):
  workdir = Workdir(tmp_path)
  workdir.claim(tiny_config(corpus))
  workdir.check(tiny_config(corpus, log_every=7, eval_every=5, eval_batches=1, checkpoint_every=3, keep=1))


def test_a_run_that_a_bad_record_ended_can_pass_over_it(tmp_path, corpus):
  workdir = Workdir(tmp_path)
  workdir.claim(tiny_config(corpus))
  workdir.check(load_config(changed(corpus, "data.source.on_bad_record", "skip")))


def test_a_run_can_be_extended_unless_its_schedule_depends_on_its_length(tmp_path, corpus):
  workdir = Workdir(tmp_path / "constant")
  workdir.claim(tiny_config(corpus))
  workdir.check(tiny_config(corpus, steps=20))
  config = load_config(changed(corpus, "optimizer.schedule", {"name": "cosine", "warmup_steps": 2}))
  workdir = Workdir(tmp_path / "cosine")
  workdir.claim(config)
  longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=20))
  with pytest.raises(WorkdirError, match=r"config\.train\.steps was 12, is 20"):
    workdir.check(longer)
