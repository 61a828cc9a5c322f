"""The capacity rule: n * c / E, rounded half up, once."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError
from moe.routing.capacity import (
  expert_choice_capacity,
  share_of_real_tokens,
  token_choice_capacity,
)
from moe.routing.methods.prefix_rank import capacity_with_slack


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
  assert capacity * experts / group == pytest.approx(actual, abs=5e-4)


@pytest.mark.parametrize(("group", "experts", "factor"), [(16, 64, 1.0), (16, 4, 4.25), (16, 4, -1.0), (16, 4, 0.0)])
def test_expert_choice_refuses_less_than_one_and_more_than_all_tokens(group, experts, factor):
  with pytest.raises(ConfigError) as error:
    expert_choice_capacity(group, experts, factor)
  message = str(error.value)
  assert message.startswith(f"capacity_factor = {factor!r}: ")
  assert f"from {experts / group:g} to {experts}" in message
  assert "\n" not in message


def test_in_evaluation_an_expert_takes_at_least_one_token_and_at_most_all():
  assert [expert_choice_capacity(group, 64, 2.0, training=False) for group in (1, 16, 100)] == [1, 1, 3]
  assert expert_choice_capacity(2, 4, 4.25, training=False) == 2


def test_the_bounds_that_the_error_names_are_accepted():
  assert expert_choice_capacity(16, 64, 64 / 16) == 1
  assert expert_choice_capacity(16, 4, 4.0) == 16


def test_token_choice_has_at_least_one_slot_and_never_more_than_tokens():
  assert token_choice_capacity(16, 64, 1.0) == 1
  assert token_choice_capacity(16, 4, 8.0) == 16


def test_slots_can_have_a_minimum_and_be_rounded_up_to_a_multiple():
  # As in V-MoE, which rounds 4.2 up to 8: the next whole number, and from there to the next multiple of 4.
  assert [token_choice_capacity(n, 10, 1.0, multiple=4) for n in (40, 42, 80, 81)] == [4, 8, 8, 12]
  # As in flaxformer, with at least 4.
  assert [token_choice_capacity(n, 16, 1.0, least=4) for n in (16, 64, 72, 73)] == [4, 4, 5, 5]
  assert token_choice_capacity(3, 16, 1.0, least=4, multiple=4) == 3


def test_slack_is_counted_in_square_roots_of_the_mean():
  assert capacity_with_slack(256, 8, 2.0, slack=3.0) == 64 + 24
  assert capacity_with_slack(8, 8, 2.0, slack=3.0) == 7  # 2 + 3 * 1.414
  assert capacity_with_slack(8, 8, 8.0, slack=3.0) == 8
  assert capacity_with_slack(8, 64, 1.0, slack=0.0) == 1


@pytest.mark.parametrize(("experts", "factor"), [(4, 1.0), (10, 1.15), (64, 1.25), (3, 3.0)])
def test_the_share_of_tokens_counted_at_run_time_is_that_of_a_group_of_as_many(experts, factor):
  first = -(-experts // (2 * factor))  # below it the share rounds to 0
  real = np.arange(first, 3000, dtype=np.int32)
  expected = [expert_choice_capacity(int(n), experts, factor) for n in real]
  np.testing.assert_array_equal(share_of_real_tokens(jnp.asarray(real), experts, factor), expected)
  np.testing.assert_array_equal(share_of_real_tokens(jnp.arange(int(first)), experts, factor), np.zeros(int(first)))


def test_the_share_of_a_billion_tokens_does_not_overflow():
  assert int(share_of_real_tokens(jnp.int32(2**30), 64, 2.0)) == 2**25
  # 1.234567 / 64 has a denominator beyond 2^15: the nearest fraction errs by less than 2^-30.
  assert int(share_of_real_tokens(jnp.int32(2**20), 64, 1.234567)) == pytest.approx(2**20 * 1.234567 / 64, abs=1)
