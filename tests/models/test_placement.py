"""Which layers have experts, and the units that a stack compiles them as."""

import functools
import random

import pytest

from moe.config import ConfigError, build
from moe.models.placement import EveryNth, Last, Listed, Placement
from moe.models.stack import units_of

DENSE, MOE = (False,), (True,)


def test_a_thousand_layers_are_divided_without_recursion():
  pattern = [layer % 2 == 1 for layer in range(1000)]
  assert units_of(pattern) == [((False, True), 500)]


@pytest.mark.parametrize(
  ("placement", "layers", "expected"),
  [
    (EveryNth(), 4, "dmdm"),
    (EveryNth(3), 6, "ddmddm"),
    (EveryNth(1), 2, "mm"),
    (Last(1), 3, "ddm"),
    (Last(3), 3, "mmm"),
    (Listed((0, 3)), 5, "mddmd"),
  ],
)
def test_moe_layers_are_where_the_placement_says(placement, layers, expected):
  assert placement.has_experts(layers) == tuple(letter == "m" for letter in expected)


@pytest.mark.parametrize(
  ("values", "layers", "message"),
  [
    ({"name": "every_nth", "n": 0}, 4, "placement.n = 0: expected at least 1"),
    ({"name": "every_nth", "n": 3}, 4, "n = 3: expected a divisor of the 4 layers"),
    ({"name": "last", "n": 0}, 4, "placement.n = 0: expected at least 1"),
    ({"name": "last", "n": 5}, 4, "n = 5: expected at most the 4 layers"),
    ({"name": "last"}, 4, "placement.n = None: is missing"),
    ({"name": "listed", "layers": []}, 4, "placement.layers = []: expected ascending layer numbers from 0"),
    ({"name": "listed", "layers": [2, 1]}, 4, "placement.layers = [2, 1]: expected ascending layer numbers"),
    ({"name": "listed", "layers": [1, 1]}, 4, "placement.layers = [1, 1]: expected ascending layer numbers"),
    ({"name": "listed", "layers": [-1]}, 4, "placement.layers = [-1]: expected ascending layer numbers"),
    ({"name": "listed", "layers": [1, 4]}, 4, "layers = [1, 4]: expected numbers below the 4 layers"),
    ({"name": "first"}, 4, "placement.name = 'first': expected one of every_nth, last, listed"),
  ],
)
def test_placements_that_make_no_sense_are_refused(values, layers, message):
  with pytest.raises(ConfigError) as caught:
    build(Placement, values, "placement").has_experts(layers)
  assert str(caught.value).startswith(message)


def test_every_second_of_12_is_one_unit_of_two_repeated_6_times():
  assert units_of(EveryNth(2).has_experts(12)) == [(DENSE + MOE, 6)]


def test_the_last_6_of_12_are_two_units_of_one_layer_each():
  assert units_of(Last(6).has_experts(12)) == [(DENSE, 6), (MOE, 6)]


def test_a_dense_stack_is_one_layer_repeated():
  assert units_of((False,) * 12) == [(DENSE, 12)]


def test_listed_layers_are_cut_where_they_repeat():
  assert units_of(Listed((1, 2, 4, 5, 7, 8)).has_experts(9)) == [(DENSE + MOE + MOE, 3)]
  assert units_of(Listed((0, 5)).has_experts(6)) == [(MOE, 1), (DENSE, 4), (MOE, 1)]


def patterns(count: int, longest: int) -> list[tuple[bool, ...]]:
  drawn = random.Random(0)
  return [tuple(drawn.random() < drawn.random() for _ in range(drawn.randint(1, longest))) for _ in range(count)]


@pytest.mark.parametrize("pattern", patterns(40, 32), ids=lambda p: "".join("dm"[layer] for layer in p))
def test_units_concatenated_give_the_layers_back(pattern):
  assert sum((unit * repeats for unit, repeats in units_of(pattern)), ()) == pattern


@functools.cache
def fewest_layers(pattern: tuple[bool, ...]) -> int:
  """The least number of layers to compile: over all ways to cut the pattern in pieces, of which each is one unit."""
  if not pattern:
    return 0
  cuts = range(1, len(pattern) + 1)
  return min(shortest_unit(pattern[:cut]) + fewest_layers(pattern[cut:]) for cut in cuts)


def shortest_unit(piece: tuple[bool, ...]) -> int:
  """The length of the shortest unit that gives the whole piece when it is repeated."""
  sizes = range(1, len(piece) + 1)
  return next(s for s in sizes if len(piece) % s == 0 and piece[:s] * (len(piece) // s) == piece)


def test_no_other_units_have_fewer_layers_to_compile():
  for layers in range(1, 11):
    for number in range(2**layers):
      pattern = tuple(bool(number >> layer & 1) for layer in range(layers))
      assert sum(len(unit) for unit, _ in units_of(pattern)) == fewest_layers(pattern), pattern
