"""Cases of parametrised tests that only `--slow` runs."""

import pytest


def slow(*values):
  """A case that is slow."""
  return pytest.param(*values, marks=pytest.mark.slow)


def first_ones(count: int, cases) -> list:
  """The cases, all but the first few of them slow."""
  cases = list(cases)
  return cases[:count] + [slow(case) for case in cases[count:]]
