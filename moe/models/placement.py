"""Which layers of a stack have experts."""

import dataclasses
import itertools

from moe.config import Choice, require


class Placement(Choice):
  """Where the MoE layers of a stack are; layers are counted from 0.

  Metrics and reports count the MoE layers alone: `encoder/layer_0` is the first of them.
  """

  def has_experts(self, layers: int) -> tuple[bool, ...]:
    """For each of `layers` layers, whether it is a MoE layer; at least one is.

    Raises:
      ConfigError: there are too few layers, or their number does not fit.
    """
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class EveryNth(Placement, name="every_nth"):
  """The last of every n layers, as in GShard, GLaM and Zhou et al. 2022 (n = 2)."""

  n: int = 2

  def __post_init__(self):
    require(self.n >= 1, "n", self.n, "expected at least 1")

  def has_experts(self, layers: int) -> tuple[bool, ...]:
    require(layers % self.n == 0, "n", self.n, f"expected a divisor of the {layers} layers")
    return tuple(layer % self.n == self.n - 1 for layer in range(layers))


@dataclasses.dataclass(frozen=True)
class Last(Placement, name="last"):
  """The last n layers, as in Soft MoE (Puigcerver et al. 2023, section 3)."""

  n: int

  def __post_init__(self):
    require(self.n >= 1, "n", self.n, "expected at least 1")

  def has_experts(self, layers: int) -> tuple[bool, ...]:
    require(self.n <= layers, "n", self.n, f"expected at most the {layers} layers")
    return tuple(layer >= layers - self.n for layer in range(layers))


@dataclasses.dataclass(frozen=True)
class Listed(Placement, name="listed"):
  """The layers with these numbers."""

  layers: tuple[int, ...]

  def __post_init__(self):
    listed = self.layers
    rising = bool(listed) and all(a < b for a, b in itertools.pairwise(listed)) and listed[0] >= 0
    require(rising, "layers", list(listed), "expected ascending layer numbers from 0, at least one")

  def has_experts(self, layers: int) -> tuple[bool, ...]:
    require(self.layers[-1] < layers, "layers", list(self.layers), f"expected numbers below the {layers} layers")
    return tuple(layer in self.layers for layer in range(layers))
