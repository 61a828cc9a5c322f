"""The capacity rule: n * c / E, rounded half up, once."""

import pytest

from moe.config import ConfigError
from moe.routing.capacity import actual_capacity_factor, expert_choice_capacity, token_choice_capacity


@pytest.mark.parametrize(
  ("group", "experts", "factor", "capacity", "actual"),
  [
    (196, 32, 1.0, 6, 0.980),  # the worked example of the specification: 6.125
    (4096, 16, 2.0, 512, 2.0),
    (10, 4, 1.0, 3, 1.2),  # 2.5: half goes up, where Python's round() would say 2
    (14, 4, 1.0, 4, 1.143),  # 3.5
    (10, 10, 1.15, 1, 1.0),  # 1.15
    (100, 10, 1.15, 12, 1.2),  # 11.5 as it is written; 11.499... as a binary float
    (100, 64, 2.0, 3, 1.92),  # 3.125, which flooring n / E first makes 2
  ],
)
def test_capacity_is_rounded_half_up_and_the_factor_really_used_is_known(group, experts, factor, capacity, actual):
  assert expert_choice_capacity(group, experts, factor) == capacity
  assert token_choice_capacity(group, experts, factor) == capacity
  assert actual_capacity_factor(capacity, group, experts) == pytest.approx(actual, abs=5e-4)


@pytest.mark.parametrize(("group", "experts", "factor"), [(16, 64, 1.0), (16, 4, 4.25), (16, 4, -1.0), (16, 4, 0.0)])
def test_expert_choice_refuses_less_than_one_and_more_than_all_tokens(group, experts, factor):
  with pytest.raises(ConfigError) as error:
    expert_choice_capacity(group, experts, factor)
  message = str(error.value)
  assert message.startswith(f"capacity_factor = {factor!r}: ")
  assert f"from {experts / group:g} to {experts}" in message
  assert "\n" not in message


def test_the_bounds_that_the_error_names_are_accepted():
  assert expert_choice_capacity(16, 64, 64 / 16) == 1
  assert expert_choice_capacity(16, 4, 4.0) == 16


def test_token_choice_has_at_least_one_slot_and_never_more_than_tokens():
  assert token_choice_capacity(16, 64, 1.0) == 1
  assert token_choice_capacity(16, 4, 8.0) == 16
