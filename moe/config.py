"""From nested mappings to frozen dataclasses, every field checked.

Config files are `ml_collections.ConfigDict`s; the rest of the code sees only the dataclasses that `build` makes of
them. A section whose field `name` chooses what it is (a router, an optimizer, a data source, ...) is a `Choice`: the
dataclass registered under that name, whose fields are the options and whose methods say what the choice does.
"""

import ast
import contextlib
import dataclasses
import json
import math
import numbers
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar, cast

T = TypeVar("T")

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32


class UserError(Exception):
  """What the user can fix. Entry points and scripts print it as one line and end with its exit code.

  Attributes:
    code: 2 for what is wrong before the work begins, 1 for work that began well and had to stop.
  """

  code: ClassVar[int] = 2


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or its type if it has none: libraries explain themselves over pages."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


class ConfigError(UserError, ValueError):
  """One wrong field: its name, the value given, and what would be right."""

  def __init__(self, field: str, value: Any, expected: str):
    super().__init__(f"{field} = {_shown(value)}: {expected}")
    self.field, self.value, self.expected = field, value, expected

  def under(self, path: str) -> "ConfigError":
    """The same error with the field's name completed by the section it belongs to, unless it is whole already."""
    whole = self.field.startswith(("config.", "--"))
    return self if whole else ConfigError(f"{path}.{self.field}", self.value, self.expected)


@contextlib.contextmanager
def in_section(path: str) -> Iterator[None]:
  """Prefixes the field of a `ConfigError` raised inside with the section that it belongs to."""
  try:
    yield
  except ConfigError as error:
    raise error.under(path) from None


def _shown(value: Any) -> str:
  """The value as Python writes it, cut where it is too long for a line."""
  try:
    text = repr(value)
  except ValueError:  # Python does not write out whole numbers of thousands of digits
    return "a whole number of thousands of digits"
  return text if len(text) <= 200 else f"{text[:200]}..."


def require(condition: bool, field: str, value: Any, expected: str) -> None:
  """Raises `ConfigError` unless the condition holds; for `__post_init__` checks across fields."""
  if not condition:
    raise ConfigError(field, value, expected)


class Text(str):
  """A value as it was written on a command line. The field that it is for decides how it is read."""

  __slots__ = ()

  def read(self) -> Any:
    """What it is as JSON or as a Python literal, or else the text itself."""
    for parse in (json.loads, ast.literal_eval):
      # The last two are what deeply nested brackets end in.
      with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return parse(str(self))
    return str(self)


class Choice:
  """Base of a family of sections of which the field `name` picks one.

      class Schedule(Choice):                         # a family
        def factor(self, step): ...

      @dataclasses.dataclass(frozen=True)
      class Cosine(Schedule, name="cosine"):          # a member of it, found by its name from now on
        final_fraction: float = 0.0

  Attributes:
    name: of the member.
    choices: the family's members by name.
  """

  name: ClassVar[str]
  choices: ClassVar[dict[str, type[Any]]]

  def __init_subclass__(cls, name: str | None = None):
    super().__init_subclass__()
    if Choice in cls.__bases__:
      cls.choices = {}
    if name is None:
      return
    if name in cls.choices:
      raise ValueError(f"{cls.__name__}: the name {name!r} is taken by {cls.choices[name].__module__}")
    cls.name = name
    cls.choices[name] = cls


def build(cls: type[T], values: Any, path: str = "config", default: Any = None) -> T:
  """Makes the dataclass `cls`, or of a family of `Choice` the member that is named, of a mapping.

  Args:
    cls: a dataclass, or a family.
    values: the fields by name, in a mapping or a `ConfigDict`; of a choice the name alone will do.
    path: of the section, for errors.
    default: the choice that is meant where no name is given.

  Raises:
    ConfigError: an unknown field, a missing one, a value of another type, or what `cls.__post_init__` refuses.
  """
  if isinstance(values, Text):
    values = values.read()
  if hasattr(values, "to_dict"):  # a ConfigDict; data can be read without ml_collections
    values = values.to_dict()
  chooses = issubclass(cls, Choice)
  if chooses and isinstance(values, str):
    values = {"name": values}
  if not isinstance(values, Mapping):
    raise ConfigError(path, values, f"expected {_section(cls)}")
  if chooses:
    cls, values = _chosen(cast(Any, cls), values, path, default)
  fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in fields:
      raise ConfigError(
        f"{path}.{name}", values[name], f"unknown field; {cls.__name__} has {', '.join(fields) or 'none'}"
      )
  for name, field in fields.items():
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if required and name not in values:
      raise ConfigError(f"{path}.{name}", None, "is missing and has no default")
  checked = {name: _check(hints[name], values[name], f"{path}.{name}", fields[name]) for name in values}
  with in_section(path):
    return cls(**checked)


def _section(cls: Any) -> str:
  """What to write where a section belongs."""
  if issubclass(cls, Choice):
    return f"the name, or the fields, of one of {', '.join(sorted(cls.choices))}"
  return f"a section with the fields {', '.join(field.name for field in dataclasses.fields(cls))}"


def _chosen(family: type[Choice], values: Mapping[str, Any], path: str, default: Any) -> tuple[Any, dict[str, Any]]:
  """The member that the values name, and its fields."""
  values = dict(values)
  name = values.pop("name", getattr(default, "name", None))
  if not isinstance(name, str) or name not in family.choices:
    raise ConfigError(f"{path}.name", name, f"expected one of {', '.join(sorted(family.choices))}")
  return family.choices[name], values


def _check(hint: Any, value: Any, path: str, field: Any = None) -> Any:
  """The value, converted where nothing is lost (int to float, list to tuple), or a `ConfigError`."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  is_union = origin in (typing.Union, types.UnionType)
  if isinstance(value, Text) and not is_union:
    value = str(value) if hint is str or value in arguments else _number(value) if hint is float else value.read()
  if is_union:
    if value is None or (isinstance(value, Text) and value.read() is None):
      return None
    (inner,) = (argument for argument in arguments if argument is not type(None))
    return _check(inner, value, path, field)
  if origin is Literal:
    # Python holds 1 and True to be equal.
    if not any(type(value) is type(allowed) and value == allowed for allowed in arguments):
      raise ConfigError(path, value, f"expected one of {', '.join(map(repr, arguments))}")
    return value
  if origin is tuple:
    if not isinstance(value, (list, tuple)):
      raise ConfigError(path, value, "expected a list")
    return tuple(_check(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
  if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, Choice)):
    return value if isinstance(value, hint) else build(hint, value, path, _default(field))
  return _checked_scalar(hint, value, path)


def _number(text: Text) -> Any:
  """The text as a number, also if it is a word that Python knows, such as "inf"; else read as for any field."""
  try:
    return float(text)
  except ValueError:
    return text.read()


def _checked_scalar(hint: type, value: Any, path: str) -> Any:
  """A `bool`, `int`, `float` or `str` that the rest of the code can compute with; numbers may also be NumPy's."""
  kind: Any = {int: numbers.Integral, float: numbers.Real}.get(hint, hint)
  if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
    raise ConfigError(path, value, f"expected {hint.__name__}, got {type(value).__name__}")
  if hint is int:
    value = int(value)
    # What JAX computes with; a larger number would overflow somewhere in a trace, or wrap without a word.
    require(-(2**31) <= value < 2**31, path, value, "expected a whole number of at most 32 bits, less than 2^31")
  if hint is float:
    try:
      value = float(value)
    except OverflowError:
      value = math.inf
    require(abs(value) <= _LARGEST, path, value, "expected a number that is finite in float32")
  if hint is str:
    whole = "\0" not in value and value.encode(errors="replace").decode() == value
    require(whole, path, value, "expected text without NUL and without half surrogate pairs")
  return value


def _default(field: Any) -> Any:
  """What a field is where nothing is given; None for one that must be given."""
  if field is None:
    return None
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return None if field.default is dataclasses.MISSING else field.default


def as_mapping(config: Any) -> Any:
  """The inverse of `build`: nested mappings that JSON can hold."""
  if dataclasses.is_dataclass(config):
    named: dict[str, Any] = {"name": config.name} if isinstance(config, Choice) else {}
    return named | {field.name: as_mapping(getattr(config, field.name)) for field in dataclasses.fields(config)}
  return [as_mapping(item) for item in config] if isinstance(config, tuple) else config


def parse_field(text: str) -> tuple[str, Any]:
  """The dotted name and the value of `FIELD=VALUE`, for `override`.

  Raises:
    ConfigError: there is no "=".
  """
  name, equals, value = text.partition("=")
  if not equals:
    raise ConfigError("argument", text, "expected FIELD=VALUE")
  return name, Text(value)


def differences(old: Any, new: Any, path: str = "config") -> dict[str, tuple[Any, Any]]:
  """The fields in which two trees of `as_mapping` differ, each with both values."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*old, *(name for name in new if name not in old)]:
      found |= differences(old.get(name), new.get(name), f"{path}.{name}")
    return found
  return {} if old == new else {path: (old, new)}


def override(values: Mapping[str, Any], fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  """A copy of a tree of `as_mapping` with some fields replaced.

  Args:
    values: the tree.
    fields: each a dotted name and its value. The last one of a name counts, and sections come before their fields. One
      that is given another `name` starts again from the defaults of that choice; one that names none yet keeps its
      fields. `section=NAME` does the same as `section.name=NAME`, except that it drops the other fields always.
  """
  result = {name: override(value, ()) if isinstance(value, Mapping) else value for name, value in values.items()}
  for field, value in sorted(fields, key=lambda one: one[0].removesuffix(".name").count(".")):
    *sections, last = field.split(".")
    section = result
    for name in sections:
      inner = section.get(name)
      inner = inner.read() if isinstance(inner, Text) else inner
      if isinstance(inner, Mapping):
        section[name] = dict(inner)
      else:
        section[name] = {"name": inner} if isinstance(inner, str) else {}
      section = section[name]
    if last == "name" and section.get("name", value) != value:
      section.clear()
    section[last] = value
  return result
