"""A wrong data config is refused in one line that names the field."""

import pytest

from moe.config import ConfigError, build
from moe.data import DataConfig, make_pipeline
from tests.data.conftest import make_config

GOOD = {"source": "standard_library", "vocabulary": "bytes", "inputs_length": 24, "targets_length": 16, "batch_size": 4}


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"source": "internet"}, "source"),
    ({"objective": "diffusion"}, "objective"),
    ({"batch": 4}, "batch"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": 4, "streams": 3}, "batch_size"),
    ({"streams": 0}, "streams"),
    ({"prefetch": 0}, "prefetch"),
    ({"seed": -1}, "seed"),
    ({"vocabulary": ""}, "vocabulary"),
    ({"path": "*.txt"}, "path"),
    ({"source": "text"}, "path"),
    ({"source": "tokens"}, "path"),
    ({"source": "task"}, "task"),
    ({"task": "c4/en"}, "task"),
    ({"data_dir": "tfds"}, "data_dir"),
    ({"modules": ["tasks"]}, "modules"),
    ({"validation_path": "*.txt"}, "validation_path"),
    ({"validation_fraction": 1.0}, "validation_fraction"),
    ({"extra_ids": -1}, "extra_ids"),
    ({"inputs_length": 1}, "inputs_length"),
    ({"targets_length": 1}, "targets_length"),
    ({"objective": "causal_lm"}, "inputs_length"),
    ({"noise_density": 1.5}, "noise_density"),
    ({"mean_noise_span": 0.5}, "mean_noise_span"),
  ],
)
def test_each_wrong_field_is_named(changes, field):
  with pytest.raises(ConfigError) as error:
    build(DataConfig, GOOD | changes, "config.data")
  assert error.value.field == f"config.data.{field}"
  assert "\n" not in str(error.value)


def test_the_good_config_is_accepted():
  assert build(DataConfig, GOOD, "config.data").objective == "prefix_lm"


@pytest.mark.parametrize(
  ("changes", "architecture", "field"),
  [
    ({"objective": "causal_lm", "inputs_length": 0}, "encoder_decoder", "objective"),
    ({"objective": "text_to_text"}, "encoder_decoder", "objective"),
    ({"objective": "span_corruption", "targets_length": 2}, "encoder_decoder", "targets_length"),
    ({"objective": "span_corruption", "extra_ids": 0}, "encoder_decoder", "extra_ids"),
    ({"objective": "span_corruption", "inputs_length": 2}, "encoder_decoder", "inputs_length"),
  ],
)
def test_an_objective_that_cannot_be_served_is_refused(changes, architecture, field):
  config = make_config(**({"source": "standard_library"} | changes))
  with pytest.raises(ConfigError) as error:
    make_pipeline(config, architecture, "train", training=True)
  assert error.value.field == field
