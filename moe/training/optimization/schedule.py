"""Learning-rate schedules. Steps are counted from 1: the first update is step 1."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

from moe.config import Choice, require

# The learning rate as a function of the number of updates made so far: 0 before the first. It is computed on the host
# and given to each step, so that another schedule, or another length of the run, is the same program.
Schedule = Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Choice):
  """A linear rise from 0 to the peak, and what follows it.

  Attributes:
    warmup_steps: the step that reaches the peak.
    depends_on_length: whether the rate depends on the length of the run, which then cannot be extended.
  """

  warmup_steps: int = 0
  depends_on_length: ClassVar[bool] = False

  def __post_init__(self) -> None:
    require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "expected at least 0")

  def make(self, peak: float, total_steps: int) -> Schedule:
    """The learning rate of a run of `total_steps`."""

    def schedule(count: int) -> float:
      step = count + 1
      warmup = min(1.0, step / max(1, self.warmup_steps))
      return peak * warmup * self.after_warmup(step, total_steps)

    return schedule

  def after_warmup(self, step: int, total_steps: int) -> float:
    """The rate as a fraction of the peak."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(ScheduleConfig, name="constant"):
  """The peak."""

  def after_warmup(self, step: int, total_steps: int) -> float:
    return 1.0


@dataclasses.dataclass(frozen=True)
class ConstantRsqrt(ScheduleConfig, name="constant_rsqrt"):
  """The peak until `decay_start`, then a decay with 1/sqrt(step), as in T5 and GLaM.

  Attributes:
    decay_start: the last step at the peak; GLaM's is 10,000.
  """

  decay_start: int = 10_000

  def __post_init__(self) -> None:
    super().__post_init__()
    require(self.decay_start >= 1, "decay_start", self.decay_start, "expected at least 1")

  def after_warmup(self, step: int, total_steps: int) -> float:
    return math.sqrt(self.decay_start / max(step, self.decay_start))


@dataclasses.dataclass(frozen=True)
class _Decay(ScheduleConfig):
  """A decay that ends with the run.

  Attributes:
    final_fraction: the rate of the last step, as a fraction of the peak.
  """

  final_fraction: float = 0.0
  depends_on_length: ClassVar[bool] = True

  def __post_init__(self) -> None:
    super().__post_init__()
    require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "expected a number from 0 to 1")

  def progress(self, step: int, total_steps: int) -> float:
    """From 0 at the end of the warm-up to 1 at the last step."""
    return min(max((step - self.warmup_steps) / max(1, total_steps - self.warmup_steps), 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class Cosine(_Decay, name="cosine"):
  """Half a period of a cosine (Loshchilov and Hutter 2017)."""

  def after_warmup(self, step: int, total_steps: int) -> float:
    cosine = math.cos(math.pi * self.progress(step, total_steps))
    return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + cosine)


@dataclasses.dataclass(frozen=True)
class Linear(_Decay, name="linear"):
  """A straight line."""

  def after_warmup(self, step: int, total_steps: int) -> float:
    return 1 - (1 - self.final_fraction) * self.progress(step, total_steps)
