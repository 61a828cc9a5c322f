"""The device against the CPU: what counts as an error, and that wrong kernels are found."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from moe.checks.agreement import Case, agreement, difference
from moe.checks.kernels import kernel_cases


@pytest.mark.parametrize(
  ("found", "expected", "error", "ok"),
  [
    (np.float32([1.0, -4.0]), np.float32([1.0, -4.002]), 0.0005, True),
    (np.float32([1.0, -4.0]), np.float32([1.0, -4.008]), 0.002, False),
    (jnp.bfloat16([1.0, 4.0]), np.float32([1.0, 4.04]), 0.01, True),
    (np.float32([0.0, 2e-6]), np.float32([0.0, 0.0]), 0.0002, True),
    (np.int32([3, 4, 5, 6]), np.int32([3, 4, 5, 7]), 0.25, False),
    (np.float32([np.nan, 1.0]), np.float32([1.0, 1.0]), np.inf, False),
    (np.float32([-np.inf, 1.0]), np.float32([-np.inf, 1.0]), 0.0, True),
  ],
)
def test_errors_are_relative_to_the_largest_number_of_an_array(found, expected, error, ok):
  result = difference({"a": found}, {"a": expected}, tolerance=1e-3)
  assert (result.error, result.ok) == (pytest.approx(error, rel=0.02), ok)


def test_the_worst_array_is_the_one_that_exceeds_its_own_tolerance_most():
  found = {"half": jnp.bfloat16([1.0]), "one": np.float32([1.0]), "whole": np.int32([1])}
  expected = {"half": np.float32([1.01]), "one": np.float32([1.002]), "whole": np.int32([1])}
  worst = difference(found, expected, tolerance=1e-3)
  assert (worst.worst, worst.tolerance, worst.ok) == ("one", 1e-3, False)


def test_inputs_whose_choices_are_close_are_not_used():
  """Seeds 0 and 1 give a tie; the other way round it would be another argument's turn."""

  def draw(seed):
    return (np.float32([1, 1] if seed < 2 else [1, 2]),)

  seen = []

  def operands(arguments):
    seen.append(arguments[0].tolist())
    return arguments

  assert agreement(Case(jnp.argmax, jnp.argmax, draw, 1e-3, operands, discrete=True)).ok
  assert seen == [[1, 2]]
  with pytest.raises(RuntimeError, match="some choice was always close"):
    agreement(Case(jnp.argmax, jnp.argmax, lambda seed: draw(0), 1e-3, discrete=True))


@pytest.fixture
def interpreted(monkeypatch):
  """Kernels run on the CPU, and what they leave unwritten is NaN."""
  monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_kernels_of_every_platform_agree(interpreted, platform):
  cases = kernel_cases(platform, quick=True)
  assert sum(name.startswith("pallas") for name in cases) == 10
  for name, case in cases.items():
    found = agreement(case)
    assert found.ok, (name, found)


def test_a_wrong_kernel_is_found():
  case = next(case for name, case in kernel_cases("cpu", quick=True).items() if "bfloat16, backward" in name)

  def wrong(*arguments):
    d_tokens, *others = case.function(*arguments)
    return d_tokens.at[3].multiply(2), *others

  assert agreement(case).ok
  found = agreement(Case(wrong, case.reference, case.draw, case.tolerance, case.operands, case.precision))
  assert not found.ok and found.worst == "0"
