"""What a run compiles does not depend on what differs between runs of one model."""

import jax
import numpy as np
import pytest

from moe.config import override
from moe.parallel.mesh import make_mesh
from moe.parallel.programs import shared_programs
from moe.training.experiment import ExperimentConfig, load_config
from moe.training.setup import Setup
from tests.slow import slow
from tests.training.tiny import tiny_decoder, tiny_mapping


def config_of(corpus, *, seed=3, steps=12, fields=(), **optimizer) -> ExperimentConfig:
  """A decoder; `fields` are others, by their paths."""
  mapping = tiny_mapping(corpus, steps=steps)
  mapping["model"] = tiny_decoder(mapping, {"name": "switch"})
  mapping["optimizer"] = {"learning_rate": 0.03, "schedule": {"name": "cosine", "warmup_steps": 2}} | optimizer
  return load_config(override(mapping | {"seed": seed}, fields))


def program(config: ExperimentConfig) -> str:
  """The train step as it is given to the compiler."""
  setup = Setup(config, make_mesh())
  batch = config.data.row_shape(config.model.row_format).empty(config.data.batch_size)
  step = setup.train_step(np.ones(config.model.vocab_size, np.int32))
  return step.lower(setup.abstract, batch, setup.inputs(5)).as_text()


@pytest.mark.parametrize(
  "changes",
  [
    {"seed": 4},
    slow({"steps": 40}),
    slow({"learning_rate": 0.1}),
    {"schedule": {"name": "constant_rsqrt", "warmup_steps": 1, "decay_start": 3}},
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_another_seed_length_rate_or_schedule_is_the_same_program(own_programs, corpus, changes):
  one, other = config_of(corpus), config_of(corpus, **changes)
  assert program(one) == program(other)
  given = [Setup(config, make_mesh()).inputs(5) for config in (one, other)]
  assert (given[0].key != given[1].key).any() == ("seed" in changes)
  assert (given[0].learning_rate != given[1].learning_rate) == ("seed" not in changes)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("train.logits_z_loss", 1e-3),
    ("optimizer.clip_norm", 2.0),
    slow("model.d_ff", 40),
    slow("train.accumulation", 2),
    slow("optimizer.frozen", ["router/kernel"]),
  ],
)
def test_another_config_is_another_program_also_where_programs_are_shared(own_programs, corpus, field, value):
  config, other = config_of(corpus), config_of(corpus, fields=[(field, value)])
  expected = program(other)
  with shared_programs():
    assert program(config) != expected
    assert program(other) == expected


def test_the_lengths_of_tokens_are_a_part_of_the_program(corpus):
  config = config_of(corpus)
  setup = Setup(config, make_mesh())
  one, other = (np.full(config.model.vocab_size, length) for length in (1, 2))
  with shared_programs():
    step = setup.train_step(one)
    assert setup.train_step(one.copy()) is step is not setup.train_step(other)


def test_the_key_is_that_of_the_seed(corpus):
  first = jax.random.split(jax.random.key(3))[1]
  np.testing.assert_array_equal(Setup(config_of(corpus), make_mesh()).inputs(0).key, jax.random.key_data(first))
