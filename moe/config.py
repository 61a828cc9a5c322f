"""From nested mappings to frozen dataclasses, every field checked.

Config files are `ml_collections.ConfigDict`s; the rest of the code only sees the dataclasses that `build` makes of
them. A class that needs more than a field-by-field reading (a registry looked up by name, say)
defines `from_mapping`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")


class ConfigError(ValueError):
  """One wrong field: its name, the value given, and what would be right."""

  def __init__(self, field: str, value: Any, expected: str):
    super().__init__(f"{field} = {value!r}: {expected}")
    self.field, self.value, self.expected = field, value, expected

  def under(self, path: str) -> "ConfigError":
    """The same error with the field's name completed by where its dataclass stands."""
    return ConfigError(f"{path}.{self.field}", self.value, self.expected)


def require(condition: bool, field: str, value: Any, expected: str) -> None:
  """Raises `ConfigError` unless the condition holds; for `__post_init__` checks across fields."""
  if not condition:
    raise ConfigError(field, value, expected)


def build(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
  """Makes the dataclass `cls` of a mapping.

  Raises:
    ConfigError: an unknown field, a missing one, a value of another type, or what `cls.__post_init__` refuses.
  """
  own = getattr(cls, "from_mapping", None)
  if own is not None:
    return own(values, path)
  if not isinstance(values, Mapping):
    raise ConfigError(path, values, f"expected the fields of {cls.__name__}")
  fields = {field.name: field for field in dataclasses.fields(cast(Any, cls))}
  hints = typing.get_type_hints(cls)
  for name in values:
    if name not in fields:
      raise ConfigError(f"{path}.{name}", values[name], f"unknown field; {cls.__name__} has {', '.join(fields)}")
  for name, field in fields.items():
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if required and name not in values:
      raise ConfigError(f"{path}.{name}", None, "is missing and has no default")
  checked = {name: _check(hints[name], values[name], f"{path}.{name}") for name in values}
  try:
    return cls(**checked)
  except ConfigError as error:
    raise error.under(path) from None


def _check(hint: Any, value: Any, path: str) -> Any:
  """The value, converted where nothing is lost (int to float, list to tuple), or a `ConfigError`."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in arguments:
      return None
    (inner,) = (argument for argument in arguments if argument is not type(None))
    return _check(inner, value, path)
  if origin is Literal:
    if value not in arguments:
      raise ConfigError(path, value, f"expected one of {', '.join(map(repr, arguments))}")
    return value
  if origin is tuple:
    if not isinstance(value, (list, tuple)):
      raise ConfigError(path, value, "expected a list")
    return tuple(_check(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return value if isinstance(value, hint) else build(hint, value, path)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
    raise ConfigError(path, value, f"expected {hint.__name__}, got {type(value).__name__}")
  return value
