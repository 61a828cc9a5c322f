"""Configs: what `build` accepts, what its errors say, choices by name, and trees that are changed and compared."""

import dataclasses
import itertools
import json
from typing import Literal

import numpy as np
import pytest

from moe.config import (
  Choice,
  ConfigError,
  Text,
  as_mapping,
  build,
  differences,
  first_line,
  override,
  parse_field,
  require,
)


class Shape(Choice):
  """A family."""

  def area(self) -> float:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Square(Shape, name="square"):
  side: float = 1.0

  def area(self) -> float:
    return self.side**2


@dataclasses.dataclass(frozen=True)
class Rectangle(Shape, name="rectangle"):
  width: float
  height: float = 2.0

  def __post_init__(self):
    require(self.width > 0, "width", self.width, "expected more than 0")

  def area(self) -> float:
    return self.width * self.height


@dataclasses.dataclass(frozen=True)
class Cut(Shape, name="cut"):
  """A choice within a choice."""

  rest: Shape
  parts: tuple[int, ...] = (2, 3)

  def area(self) -> float:
    return self.rest.area() / sum(self.parts)


@dataclasses.dataclass(frozen=True)
class Drawing:
  shape: Shape
  background: Shape = dataclasses.field(default_factory=Square)
  frame: Shape | None = None
  title: str = ""


def error_of(cls, values, path="config") -> str:
  with pytest.raises(ConfigError) as caught:
    build(cls, values, path)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_the_name_picks_the_member_and_the_other_fields_are_its_own():
  shape = build(Shape, {"name": "rectangle", "width": 3})
  assert shape == Rectangle(3.0)
  assert shape.name == "rectangle" and shape.area() == 6.0
  assert Shape.choices == {"square": Square, "rectangle": Rectangle, "cut": Cut}


def test_a_bare_string_is_a_name():
  assert build(Shape, "square") == Square()
  assert build(Drawing, {"shape": "square"}).shape == Square()


def test_a_field_with_a_default_choice_needs_no_name():
  assert build(Drawing, {"shape": "square"}).background == Square()
  assert build(Drawing, {"shape": "square", "background": {"side": 4}}).background == Square(4.0)


def test_a_default_choice_lends_its_name_and_not_its_fields():
  @dataclasses.dataclass(frozen=True)
  class Page:
    shape: Shape = dataclasses.field(default_factory=lambda: Rectangle(5.0, height=7.0))

  assert build(Page, {"shape": {"width": 3}}).shape == Rectangle(3.0, height=2.0)


def test_an_optional_choice_may_be_none():
  assert build(Drawing, {"shape": "square", "frame": None}).frame is None
  assert build(Drawing, {"shape": "square", "frame": "square"}).frame == Square()


def test_a_config_object_stands_for_itself():
  assert build(Drawing, {"shape": Rectangle(2.0)}).shape == Rectangle(2.0)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"name": "circle"}, "config.name = 'circle': expected one of cut, rectangle, square"),
    ("circle", "config.name = 'circle': expected one of cut, rectangle, square"),
    ({"side": 1}, "config.name = None: expected one of cut, rectangle, square"),
    ({"name": "square", "width": 1}, "config.width = 1: unknown field; Square has side"),
    ({"name": "square", "side": "wide"}, "config.side = 'wide': expected float, got str"),
    ({"name": "square", "side": True}, "config.side = True: expected float, got bool"),
    ({"name": "rectangle"}, "config.width = None: is missing and has no default"),
    ({"name": "rectangle", "width": 0}, "config.width = 0.0: expected more than 0"),
    ({"name": "cut", "rest": {"name": "circle"}}, "config.rest.name = 'circle': expected one of "),
    ({"name": "cut", "rest": {"name": "rectangle", "width": -1}}, "config.rest.width = -1.0: expected more than 0"),
    ({"name": "cut", "rest": "square", "parts": [1, "a"]}, "config.parts[1] = 'a': expected int, got str"),
    ({"name": "cut", "rest": "square", "parts": 3}, "config.parts = 3: expected a list"),
    (3, "config = 3: expected the name, or the fields, of one of cut, rectangle, square"),
    ({"name": "cut", "rest": None}, "config.rest = None: expected the name, or the fields, of one of "),
  ],
)
def test_errors_name_the_whole_path_the_value_and_what_is_expected(values, message):
  assert error_of(Shape, values).startswith(message)


def test_the_path_begins_with_the_section_that_is_built():
  assert error_of(Drawing, {"shape": {"name": "circle"}}, "page.left").startswith("page.left.shape.name = 'circle': ")
  assert error_of(Drawing, {}, "page.left").startswith("page.left.shape = None: is missing")
  assert error_of(Drawing, {"shape": "square", "titel": "x"}).startswith(
    "config.titel = 'x': unknown field; Drawing has shape, background, frame, title"
  )


def test_a_name_is_taken_once():
  with pytest.raises(ValueError, match=r"Another: the name 'square' is taken by tests\.test_config"):

    class Another(Shape, name="square"):
      pass

  assert Shape.choices["square"] is Square


def test_a_subclass_without_a_name_is_no_choice_and_families_do_not_share_names():
  names = set(Shape.choices)

  class Base(Shape):
    pass

  class Colour(Choice):
    pass

  class Red(Colour, name="square"):
    pass

  assert set(Shape.choices) == names
  assert Colour.choices == {"square": Red}


CONFIGS = [
  Square(2.0),
  Cut(Cut(Rectangle(3.0), parts=()), parts=(1,)),
  Drawing(Rectangle(1.5), frame=Cut(Square()), title="a page"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_config_is_built_again_from_its_mapping_and_from_its_json(config):
  family = Shape if isinstance(config, Shape) else Drawing
  mapping = as_mapping(config)
  assert build(family, mapping) == config
  assert build(family, json.loads(json.dumps(mapping))) == config


def test_the_mapping_of_nested_choices_names_each():
  assert as_mapping(Drawing(Cut(Square(2.0)))) == {
    "shape": {"name": "cut", "rest": {"name": "square", "side": 2.0}, "parts": [2, 3]},
    "background": {"name": "square", "side": 1.0},
    "frame": None,
    "title": "",
  }


TREE = as_mapping(Drawing(Cut(Rectangle(3.0, 4.0)), title="old"))


def test_override_replaces_fields_by_their_dotted_names_and_leaves_the_tree_alone():
  before = json.dumps(TREE)
  changed = override(TREE, [("shape.rest.width", 5.0), ("title", "new")])
  assert json.dumps(TREE) == before
  assert build(Drawing, changed) == Drawing(Cut(Rectangle(5.0, 4.0)), title="new")


def test_override_with_the_name_of_a_choice_that_was_made_by_default_keeps_its_fields():
  tree = {"shape": "square", "background": {"side": 4.0}}
  assert build(Drawing, override(tree, [("background.name", "square")])).background == Square(4.0)


def test_override_with_another_name_starts_again_from_the_defaults_of_that_choice():
  changed = override(TREE, [("shape.rest.name", "square")])
  assert build(Drawing, changed) == Drawing(Cut(Square()), title="old")
  changed = override(TREE, [("shape.rest.name", "square"), ("shape.rest.side", 7.0)])
  assert build(Drawing, changed) == Drawing(Cut(Square(7.0)), title="old")


def test_override_with_the_same_name_keeps_the_other_fields():
  assert build(Drawing, override(TREE, [("shape.rest.name", "rectangle")])) == build(Drawing, TREE)


def test_override_makes_the_sections_that_are_missing():
  changed = override(TREE, [("frame.name", "rectangle"), ("frame.width", 1.0)])
  assert build(Drawing, changed).frame == Rectangle(1.0)


def test_differences_are_the_fields_with_both_values():
  assert differences(TREE, TREE) == {}
  new = as_mapping(Drawing(Cut(Square()), frame=Square(), title="old"))
  assert differences(TREE, new) == {
    "config.shape.rest.name": ("rectangle", "square"),
    "config.shape.rest.width": (3.0, None),
    "config.shape.rest.height": (4.0, None),
    "config.shape.rest.side": (None, 1.0),
    "config.frame": (None, {"name": "square", "side": 1.0}),
  }


@dataclasses.dataclass(frozen=True)
class Fields:
  """A field of every kind that text is read for."""

  word: str = ""
  number: float = 0.0
  count: int = 0
  flag: bool = False
  words: tuple[str, ...] = ()
  limit: int | None = 3
  path: str | None = "x"
  mode: Literal["1", "auto"] | None = None
  shape: Shape | None = dataclasses.field(default_factory=Square)


@pytest.mark.parametrize(
  ("field", "text", "value"),
  [
    ("word", "12", "12"),
    ("word", "None", "None"),
    ("word", "a=b", "a=b"),
    ("number", "3", 3.0),
    ("number", "1e-3", 0.001),
    ("count", "12", 12),
    ("flag", "true", True),
    ("flag", "False", False),
    ("words", '["1", "b"]', ("1", "b")),
    ("words", "('a',)", ("a",)),
    ("limit", "None", None),
    ("limit", "null", None),
    ("limit", "5", 5),
    ("path", "None", None),
    ("path", "12", "12"),
    ("mode", "1", "1"),
    ("mode", "None", None),
    ("shape", "None", None),
    ("shape", "square", Square()),
    ("shape", '{"name": "rectangle", "width": 2}', Rectangle(2.0)),
  ],
)
def test_the_field_decides_how_text_is_read(field, text, value):
  found = getattr(build(Fields, override({}, [parse_field(f"{field}={text}")])), field)
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ("field", "text", "message"),
  [
    ("count", "many", "config.count = 'many': expected int, got str"),
    ("count", "1.5", "config.count = 1.5: expected int, got float"),
    ("flag", "1", "config.flag = 1: expected bool, got int"),
    ("words", "a", "config.words = 'a': expected a list"),
    ("mode", "2", "config.mode = 2: expected one of '1', 'auto'"),
    ("shape", "circle", "config.shape.name = 'circle': expected one of"),
    ("shape.side", "wide", "config.shape.side = 'wide': expected float, got str"),
  ],
)
def test_text_that_a_field_cannot_hold_is_refused(field, text, message):
  assert error_of(Fields, override({}, [(field, Text(text))])).startswith(message)


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN", "inf", "nan", "1e999", "1e39", "1" + "0" * 400])
def test_numbers_are_finite(text):
  assert error_of(Fields, {"number": Text(text)}).endswith("expected a number that is finite in float32")


def test_whole_numbers_have_at_most_32_bits():
  assert build(Fields, {"count": 2**31 - 1}).count == 2**31 - 1 and build(Fields, {"count": -(2**31)}).count == -(2**31)
  for value in (2**31, -(2**31) - 1, Text("99999999999999999999")):
    assert error_of(Fields, {"count": value}).endswith("expected a whole number of at most 32 bits, less than 2^31")


@pytest.mark.parametrize("value", ["a\0b", "half a pair \ud83d", "\udcff"])
def test_text_can_be_written_as_utf8_and_passed_to_the_operating_system(value):
  assert error_of(Fields, {"word": value}).endswith("expected text without NUL and without half surrogate pairs")
  assert build(Fields, {"word": "naïve 🙂"}).word == "naïve 🙂"


def test_numbers_of_numpy_become_plain_ones():
  fields = build(Fields, {"number": np.float32(0.5), "count": np.int64(3), "limit": np.int32(4)})
  assert (fields.number, fields.count, fields.limit) == (0.5, 3, 4)
  assert [type(value) for value in (fields.number, fields.count, fields.limit)] == [float, int, int]
  assert error_of(Fields, {"number": np.float32("nan")}).endswith("expected a number that is finite in float32")


def test_true_is_not_one_of_the_numbers_that_a_field_allows():
  @dataclasses.dataclass(frozen=True)
  class Levels:
    level: Literal[1, 2] = 1

  assert error_of(Levels, {"level": True}) == "config.level = True: expected one of 1, 2"


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "(" * 100_000, "-" * 100_000 + "1"])
def test_deeply_nested_text_is_text(text):
  assert build(Fields, {"word": Text(text)}).word == text
  assert error_of(Fields, {"count": Text(text)}).endswith("expected int, got str")


def test_a_long_value_is_cut_in_its_error():
  assert len(error_of(Fields, {"count": "a" * 10**6})) < 300
  assert error_of(Fields, {"count": 10**5000}) == (
    "config.count = a whole number of thousands of digits: expected a whole number of at most 32 bits, less than 2^31"
  )


def test_sections_are_chosen_before_their_fields_are_set_whatever_the_order():
  fields = [("shape.rest.width", 5.0), ("shape.rest.name", "rectangle"), ("shape", "cut"), ("title", "new")]
  expected = Drawing(Cut(Rectangle(5.0)), title="new")
  for order in itertools.permutations(fields):
    assert build(Drawing, override(TREE, order)) == expected


def test_fields_of_a_section_that_is_given_as_text():
  given = [("shape", Text('{"name": "rectangle", "width": 2}')), ("shape.height", Text("3"))]
  assert build(Drawing, override(TREE, given)).shape == Rectangle(2.0, 3.0)
  again = [("frame", Text("None")), ("frame.name", Text("square")), ("frame.side", Text("2"))]
  assert build(Drawing, override(TREE, again)).frame == Square(2.0)


def test_the_first_line_of_an_error_is_its_type_if_it_says_nothing():
  assert first_line(ValueError("\none\ntwo")) == "one"
  assert first_line(TimeoutError()) == first_line(TimeoutError("\n")) == "TimeoutError"
