"""A wrong data config is rejected in one line that names the field."""

import pytest

from moe.config import ConfigError, as_mapping, build
from moe.data import DataConfig, make_pipeline
from moe.data.objectives.prefix_lm import PrefixLMConfig
from moe.data.objectives.span_corruption import SpanCorruptionConfig
from moe.data.sources.standard_library import StandardLibraryConfig
from moe.data.sources.task import TaskConfig
from moe.data.sources.text import TextConfig
from moe.data.sources.tokens import TokensConfig
from tests.data.conftest import make_config

GOOD = {"source": "standard_library", "vocabulary": "bytes", "inputs_length": 24, "targets_length": 16, "batch_size": 4}


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"source": "internet"}, "source.name"),
    ({"source": {"name": "internet"}}, "source.name"),
    ({"objective": "diffusion"}, "objective.name"),
    ({"batch": 4}, "batch"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": 4, "streams": 3}, "batch_size"),
    ({"streams": 0}, "streams"),
    ({"prefetch": 0}, "prefetch"),
    ({"seed": -1}, "seed"),
    ({"vocabulary": ""}, "vocabulary"),
    ({"path": "*.txt"}, "path"),
    ({"source": {"name": "standard_library", "path": "*.txt"}}, "source.path"),
    ({"source": "text"}, "source.path"),
    ({"source": "tokens"}, "source.path"),
    ({"source": {"name": "text", "path": ""}}, "source.path"),
    ({"source": {"name": "text", "path": "*.txt", "on_bad_record": "ignore"}}, "source.on_bad_record"),
    ({"source": {"name": "tokens", "path": " "}}, "source.path"),
    ({"source": {"name": "task", "task": ""}}, "source.task"),
    ({"source": "task"}, "source.task"),
    ({"source": {"name": "standard_library", "task": "c4/en"}}, "source.task"),
    ({"source": {"name": "standard_library", "data_dir": "tfds"}}, "source.data_dir"),
    ({"source": {"name": "standard_library", "modules": ["tasks"]}}, "source.modules"),
    ({"source": {"name": "standard_library", "validation_path": "*.txt"}}, "source.validation_path"),
    ({"source": {"name": "standard_library", "validation_fraction": 1.0}}, "source.validation_fraction"),
    ({"source": {"name": "text", "path": "*.txt", "validation_fraction": 1.0}}, "source.validation_fraction"),
    ({"extra_ids": -1}, "extra_ids"),
    ({"inputs_length": 1}, "inputs_length"),
    ({"targets_length": 1}, "targets_length"),
    ({"objective": "causal_lm"}, "inputs_length"),
    ({"objective": {"name": "causal_lm", "noise_density": 0.5}}, "objective.noise_density"),
    ({"objective": {"name": "span_corruption", "noise_density": 1.5}}, "objective.noise_density"),
    ({"objective": {"name": "span_corruption", "mean_noise_span": 0.5}}, "objective.mean_noise_span"),
  ],
)
def test_each_wrong_field_is_named(changes, field):
  with pytest.raises(ConfigError) as error:
    build(DataConfig, GOOD | changes, "config.data")
  assert error.value.field == f"config.data.{field}"
  assert "\n" not in str(error.value)


def test_the_good_config_is_accepted():
  assert build(DataConfig, GOOD, "config.data").objective == PrefixLMConfig()


@pytest.mark.parametrize(
  ("changes", "field", "expected"),
  [
    ({"source": "standard_library"}, "source", StandardLibraryConfig()),
    ({"source": {"name": "text", "path": "my/*.txt"}}, "source", TextConfig("my/*.txt")),
    ({"source": {"name": "tokens", "path": "x"}, "vocabulary": ""}, "source", TokensConfig("x")),
    ({"source": {"name": "task", "task": "c4", "modules": ["a"]}}, "source", TaskConfig("c4", modules=("a",))),
    ({"objective": "span_corruption"}, "objective", SpanCorruptionConfig(0.15, 3.0)),
    ({"objective": {"name": "span_corruption", "noise_density": 0.5}}, "objective", SpanCorruptionConfig(0.5)),
  ],
)
def test_a_source_and_an_objective_are_found_by_name_and_saved_with_it(changes, field, expected):
  config = build(DataConfig, GOOD | changes, "config.data")
  assert getattr(config, field) == expected
  assert as_mapping(config)[field]["name"] == expected.name
  assert build(DataConfig, as_mapping(config)) == config


@pytest.mark.parametrize(
  ("changes", "row_format", "field"),
  [
    ({"objective": "causal_lm", "inputs_length": 0}, "inputs_and_targets", "objective.name"),
    ({"objective": "text_to_text"}, "inputs_and_targets", "objective"),
    ({"objective": "span_corruption", "targets_length": 2}, "inputs_and_targets", "targets_length"),
    ({"objective": "span_corruption", "extra_ids": 0}, "inputs_and_targets", "extra_ids"),
    ({"objective": "span_corruption", "inputs_length": 2}, "inputs_and_targets", "inputs_length"),
  ],
)
def test_an_objective_that_cannot_be_served_is_rejected(changes, row_format, field):
  config = make_config("standard_library", **changes)
  with pytest.raises(ConfigError) as error:
    make_pipeline(config, row_format, "train", training=True)
  assert error.value.field == f"config.data.{field}"
