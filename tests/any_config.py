"""Hypothesis strategies for configs: a valid tree with some of its fields set to anything that a user may write.

A field is given values of its type that are ordinary, extreme or senseless, and sometimes values of another type. What
the fields are is read from the dataclasses, so a new option is tried without a line here.
"""

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from hypothesis import strategies as st

from moe.config import Choice

FLOATS = (0.0, -0.0, 1.0, 0.5, 2.0, 1.5, 8.0, -1.0, 1e-9, 1e9, 5e-324, 1e308, math.inf, -math.inf, math.nan, 10**400)
COUNTS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 1000, -1, -2, 10**6, 2**31, 2**32, 2**63 - 1, 2**63, 10**5000)
WORDS = ("", "x", "bytes", "a/b", "None", "0", "é" * 50, "\0", "\ud800", "x" * 10_000, "~", "[", "*")
ANYTHING = (None, "x", 3, -1.5, True, [], {}, [[]], {"name": "x"}, {"x": 1}, math.nan)


def values(hint: Any) -> st.SearchStrategy[Any]:
  """Values for a field of this type, most of them of the type."""
  return st.one_of(_typed(hint), _typed(hint), _typed(hint), st.sampled_from(ANYTHING))


def _typed(hint: Any) -> st.SearchStrategy[Any]:
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    (inner,) = (argument for argument in arguments if argument is not type(None))
    return st.one_of(st.none(), _typed(inner))
  if origin is Literal:
    return st.sampled_from(arguments)
  if origin is tuple:
    return st.lists(_typed(arguments[0]), max_size=3)
  if isinstance(hint, type) and issubclass(hint, Choice):
    return st.sampled_from(sorted(hint.choices)).flatmap(lambda name: sections(hint.choices[name], name))
  if dataclasses.is_dataclass(hint):
    return sections(hint, None)
  pools: dict[type, tuple] = {bool: (False, True), int: COUNTS, float: FLOATS, str: WORDS}
  return st.sampled_from(pools[hint])


def sections(cls: Any, name: str | None) -> st.SearchStrategy[dict[str, Any]]:
  """Trees of a dataclass: its required fields and up to three others; with `name` if it is a choice."""
  hints = typing.get_type_hints(cls)
  fields = dataclasses.fields(cls)
  missing = dataclasses.MISSING
  required = [field.name for field in fields if field.default is missing and field.default_factory is missing]
  others = [field.name for field in fields if field.name not in required]
  chosen = st.lists(st.sampled_from(others), max_size=3, unique=True) if others else st.just([])
  start = {} if name is None else {"name": name}
  return chosen.flatmap(
    lambda extra: st.fixed_dictionaries({field: values(hints[field]) for field in (*required, *extra)}).map(
      lambda tree: start | tree
    )
  )


@dataclasses.dataclass(frozen=True)
class Place:
  """A field within a tree: its path, and the type that the dataclass gives it."""

  path: tuple[str, ...]
  hint: Any


def places(cls: Any, tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[Place]:
  """All fields of a valid tree, those of its sections too, whether or not the tree gives them."""
  if issubclass(cls, Choice):
    cls = cls.choices[tree["name"]]
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    hint = hints[field.name]
    yield Place((*path, field.name), hint)
    inner = next((h for h in (*typing.get_args(hint), hint) if dataclasses.is_dataclass(h) or _is_family(h)), None)
    if inner is not None and isinstance(tree.get(field.name), dict):
      yield from places(inner, tree[field.name], (*path, field.name))


def _is_family(hint: Any) -> bool:
  return isinstance(hint, type) and issubclass(hint, Choice)


def changed_trees(cls: Any, tree: dict[str, Any], most: int = 4) -> st.SearchStrategy[dict[str, Any]]:
  """The tree with up to `most` of its fields set to anything."""

  def changes(chosen: list[Place]) -> st.SearchStrategy[dict[str, Any]]:
    # Outer fields first: a section that is replaced takes its fields with it.
    chosen = sorted(chosen, key=lambda place: len(place.path))
    return st.tuples(*(values(place.hint) for place in chosen)).map(lambda found: _changed(tree, chosen, found))

  every = list(places(cls, tree))
  return st.lists(st.sampled_from(every), min_size=1, max_size=most, unique_by=lambda place: place.path).flatmap(
    changes
  )


def _changed(tree: dict[str, Any], chosen: list[Place], found: tuple) -> dict[str, Any]:
  result = copy.deepcopy(tree)
  for place, value in zip(chosen, found):
    section: Any = result
    for name in place.path[:-1]:
      section = section.get(name) if isinstance(section, dict) else None
    if isinstance(section, dict):
      section[place.path[-1]] = copy.deepcopy(value)
  return result
