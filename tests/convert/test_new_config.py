"""What a run must have in common with the one it is made of."""

import pytest

from moe.config import ConfigError
from moe.convert.new_config import check_model, dense_config, upcycled_config
from moe.training.experiment import load_config
from tests.models.tiny import config, router
from tests.training.tiny import tiny_mapping, tiny_stack


def test_experts_that_cost_nothing_are_of_the_same_kinds_and_numbers():
  """Of two kinds that have no parameters, the shapes would not tell."""
  old, same, other = (
    config("decoder", router("moe_plus_plus", **kinds)) for kinds in ({}, {"tau": 0.5}, {"zero": 2, "copy": 0})
  )
  check_model(same, old)
  with pytest.raises(ConfigError, match="expected a router with the parameters and the state of moe_plus_plus"):
    check_model(other, old)


def test_biases_that_would_be_lost_are_refused_both_ways(tmp_path):
  mapping = tiny_mapping(tmp_path)
  mapping["model"] |= {"bias": True, "feed_forward": "gelu"}
  with pytest.raises(
    ConfigError, match=r"config.model.encoder.moe.bias = False: expected True, as of the dense network"
  ):
    dense_config(load_config(mapping), [])
  mapping["model"]["encoder"] = tiny_stack()
  experts = {"num_experts": 2, "router": "expert_choice"}
  assert upcycled_config(load_config(mapping), [("model.encoder.moe", experts)]).model.encoder.moe.bias
  with pytest.raises(ConfigError, match=r"config.model.encoder.moe.bias = False: expected True: the dense network has"):
    upcycled_config(load_config(mapping), [("model.encoder.moe", experts | {"bias": False})])
