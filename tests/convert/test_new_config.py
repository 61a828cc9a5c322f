"""What a run must have in common with the one it is made of."""

import pytest

from moe.config import ConfigError
from moe.convert.new_config import check_model
from tests.models.tiny import config, router


def test_experts_that_cost_nothing_are_of_the_same_kinds_and_numbers():
  """Of two kinds that have no parameters, the shapes would not tell."""
  old, same, other = (
    config("decoder", router("moe_plus_plus", **kinds)) for kinds in ({}, {"tau": 0.5}, {"zero": 2, "copy": 0})
  )
  check_model(same, old)
  with pytest.raises(ConfigError, match="expected a router with the parameters and the state of moe_plus_plus"):
    check_model(other, old)
