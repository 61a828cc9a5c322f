"""The one interface of every router, and the registry that finds them by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from moe.config import ConfigError, build
from moe.routing.types import RouterInput, RouterOutput

ROUTERS: dict[str, type["Router"]] = {}


def register(name: str):
  """Class decorator: makes a `Router` available to configs as `router.name = "..."`."""

  def add(cls: type["Router"]) -> type["Router"]:
    if name in ROUTERS:
      raise ValueError(f"a router named {name!r} is registered already: {ROUTERS[name].__module__}")
    ROUTERS[name] = cls
    return cls

  return add


@dataclasses.dataclass(frozen=True)
class RouterConfig:
  """A router chosen by name with its own checked options."""

  name: str
  options: Any

  @classmethod
  def from_mapping(cls, values: Mapping[str, Any], path: str) -> "RouterConfig":
    values = dict(values)
    name = values.pop("name", None)
    if name not in ROUTERS:
      raise ConfigError(f"{path}.name", name, f"unknown router; there are {', '.join(sorted(ROUTERS))}")
    return cls(name, build(ROUTERS[name].Options, values, path))

  @property
  def router(self) -> type["Router"]:
    return ROUTERS[self.name]

  def make(self, d_model: int, num_experts: int, rngs: nnx.Rngs) -> "Router":
    return self.router(self.options, d_model, num_experts, rngs=rngs)


class Router(nnx.Module):
  """Decides which experts see which tokens. Subclasses are registered by name and live one family a file.

  A subclass has a frozen dataclass `Options`, an `__init__(options, d_model, num_experts, *, rngs)` and the methods
  below. Its mathematics is float32 whatever the dtype of the tokens.
  """

  Options: ClassVar[type]

  def __init__(self, options: Any, d_model: int, num_experts: int, *, rngs: nnx.Rngs):
    """Makes the router's parameters, for tokens of width `d_model`."""
    raise NotImplementedError

  @classmethod
  def is_causal(cls, options: Any) -> bool:
    """Whether a token's output never depends on later positions of its own sequence."""
    raise NotImplementedError

  @classmethod
  def is_batch_independent(cls, options: Any, length: int) -> bool:
    """Whether the outputs of a sequence of `length` tokens never depend on the other sequences of the batch."""
    raise NotImplementedError

  @classmethod
  def group_size(cls, options: Any, batch: int, length: int) -> int:
    """Tokens of one routing group, given a batch of `batch` sequences of `length` tokens: a divisor of their product.

    Raises:
      ConfigError: the options ask for groups that this batch cannot be cut into.
    """
    raise NotImplementedError

  @classmethod
  def check(cls, options: Any, num_experts: int, group: int) -> None:
    """Raises `ConfigError` where the options do not suit this many experts or tokens per group. Costs nothing."""

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    """Routes every group of `inputs`."""
    raise NotImplementedError

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """What decoding `batch` sequences of at most `length` tokens must remember; arrays lead with `batch`."""
    raise NotImplementedError

  def decode(self, inputs: RouterInput, state: dict[str, jax.Array]) -> tuple[RouterOutput, dict[str, jax.Array]]:
    """Routes one new token of each sequence exactly as the whole sequence would have been routed (evaluation mode).

    Args:
      inputs: one group of `batch` tokens, `[1, batch, d]`: token i belongs to sequence i.
      state: from `init_decode_state` or the previous call.

    Raises:
      NotImplementedError: the router is not causal, so its decision for a token needs the tokens after it.
    """
    raise NotImplementedError(f"{type(self).__name__} looks at later tokens: it cannot decode step by step")


def checked_group_size(group_size: int, batch: int, length: int) -> int:
  """`group_size` if it cuts the batch evenly, the whole batch where it is 0.

  Raises:
    ConfigError: it does not divide `batch * length`; the message proposes the nearest size that does.
  """
  total = batch * length
  if group_size == 0:
    return total
  if group_size < 0 or total % group_size:
    near = min((size for size in range(1, total + 1) if total % size == 0), key=lambda size: abs(size - group_size))
    raise ConfigError("group_size", group_size, f"does not divide {batch} x {length} = {total} tokens; {near} would")
  return group_size
