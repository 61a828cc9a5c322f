"""The one interface of every router, and the registry that finds them by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from moe.config import ConfigError, as_mapping, build
from moe.routing.groups import Groups
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


class RouterState(nnx.Variable):
  """What a router remembers and no gradient moves: thresholds, biases, centroids, tables.

  `__call__` assigns it in training only; a checkpoint holds it beside the parameters.
  """


@dataclasses.dataclass(frozen=True)
class Site:
  """Where a router stands: what the shapes of its parameters depend on.

  Attributes:
    d_model: width of the tokens.
    num_experts: E.
    vocab_size: of the token ids; None where the model reads none.
  """

  d_model: int
  num_experts: int
  vocab_size: int | None = None


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

  def to_mapping(self) -> dict[str, Any]:
    return {"name": self.name} | as_mapping(self.options)

  @property
  def router(self) -> type["Router"]:
    return ROUTERS[self.name]

  def make(self, site: Site, rngs: nnx.Rngs) -> "Router":
    return self.router(self.options, site, rngs=rngs)

  def groups(self, batch: int, length: int) -> Groups:
    return self.router.groups(self.options, batch, length)

  def is_causal(self, *, training: bool) -> bool:
    return self.router.is_causal(self.options, training=training)

  def is_batch_independent(self, length: int, *, training: bool) -> bool:
    return self.router.is_batch_independent(self.options, length, training=training)

  def causal_twin(self) -> "RouterConfig | None":
    return self.router.causal_twin(self.options)


class Router(nnx.Module):
  """Decides which experts see which tokens. Subclasses are registered by name and live one family a file.

  A subclass has a frozen dataclass `Options`, an `__init__(options, site, *, rngs)`, the `paper` it follows, and the
  methods below. Its mathematics is float32 whatever the dtype of the tokens. It may assign its `RouterState` in
  training; the decision of a step depends on the state before the step.
  """

  Options: ClassVar[type]
  paper: ClassVar[str]

  def __init__(self, options: Any, site: Site, *, rngs: nnx.Rngs):
    """Makes the router's parameters and state."""
    raise NotImplementedError

  @classmethod
  def is_causal(cls, options: Any, *, training: bool) -> bool:
    """Whether a token's output never depends on later positions of its own sequence."""
    raise NotImplementedError

  @classmethod
  def is_batch_independent(cls, options: Any, length: int, *, training: bool) -> bool:
    """Whether the outputs of a sequence of `length` tokens never depend on the other sequences of the batch."""
    raise NotImplementedError

  @classmethod
  def causal_twin(cls, options: Any) -> RouterConfig | None:
    """A router with parameters of the same names whose rule of evaluation is causal, to judge this one's honestly by.

    None where the parameters mean nothing under a causal rule.
    """
    return None

  @classmethod
  def groups(cls, options: Any, batch: int, length: int) -> Groups:
    """How a batch of `batch` sequences of `length` tokens is cut into routing groups.

    Raises:
      ConfigError: the options ask for groups that this batch cannot be cut into.
    """
    raise NotImplementedError

  @classmethod
  def check(cls, options: Any, site: Site, batch: int, length: int) -> None:
    """Raises `ConfigError` where the options do not suit the place or batches of this shape. Computes nothing."""
    cls.groups(options, batch, length)

  @classmethod
  def stored(cls, options: Any, site: Site, vocabulary: str) -> dict[str, np.ndarray]:
    """Arrays from files that the `RouterState` of these names begins a run with; afterwards checkpoints hold them.

    Args:
      options: of the router.
      site: where it stands.
      vocabulary: fingerprint of the data's vocabulary.

    Raises:
      ConfigError: a file is missing, or was made for another vocabulary or number of experts.
    """
    return {}

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
