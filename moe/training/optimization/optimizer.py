"""Optimizers: a family of choices, each a chain of Optax's transformations.

The model stacks the parameters of scanned layers, and of experts, on leading axes. Statistics, clipping and scales of
Adafactor are per matrix: pooled over layers or experts they would be another optimizer. `per_matrix` therefore maps
it over those axes.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moe.config import Choice, ConfigError, require
from moe.training.optimization.parts import by_path, freeze, scale_part, without
from moe.training.optimization.schedule import ConstantRsqrt, Schedule, ScheduleConfig

# Nested dict like the parameters': how many leading axes of each enumerate matrices.
StackedAxes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Choice):
  """How gradients become updates.

  Attributes:
    learning_rate: peak of the schedule.
    schedule: of the learning rate.
    weight_decay: decoupled, times the learning rate; applied to matrices, not to norms and biases.
    clip_norm: largest global norm of the gradient; 0 turns clipping off. By default 1, as in GLaM, whose recipe Zhou et
      al. follow: a rare batch of huge gradients then moves no statistics far. T5X's Adafactor has 0, as its update
      clipping bounds every step; Adafactor's updates do not change with the scale of all gradients, so the two differ
      where norms pass 1 in some steps and not in others.
    router_learning_rate: factor of the learning rate, and so of the whole step, of the routers' parameters.
    expert_learning_rate: likewise of the routed experts' parameters. Shared experts have the rate of the rest: they see
      every token, as dense networks do.
    frozen: regular expressions; parameters in whose paths one is found (`moe.training.optimization.parts`) are not
      trained: they stay bit-identical, have no gradients, statistics or weight decay, and do not count in the norm of
      the gradient. The same holds for the routers' state, which has paths too: "router" freezes the routers and their
      state, "router/kernel" only the matrix. With "@N" behind it an expression freezes the first N experts' part of
      what it finds, whose gradients are then 0, and the rest is trained: "moe/(experts|router/kernel)@8", of a model
      that has grown from 8 experts.
  """

  learning_rate: float = 0.01
  schedule: ScheduleConfig = dataclasses.field(default_factory=ConstantRsqrt)
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  router_learning_rate: float = 1.0
  expert_learning_rate: float = 1.0
  frozen: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "expected more than 0")
    require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "expected at least 0")
    require(self.clip_norm >= 0, "clip_norm", self.clip_norm, "expected at least 0, which turns clipping off")
    for name in ("router_learning_rate", "expert_learning_rate"):
      factor, parts = getattr(self, name), f"{name.split('_')[0]}s"
      require(factor >= 0, name, factor, f"expected at least 0, which leaves the parameters of {parts} as they begin")
    for index, given in enumerate(self.frozen):
      pattern, first = _parted(given)
      require(first is None or first > 0, f"frozen[{index}]", given, "expected at least the first expert, PATTERN@1")
      try:
        re.compile(pattern)
      except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"frozen[{index}]", given, f"expected a regular expression ({error})") from None

  def make(self, stacked: StackedAxes) -> optax.GradientTransformation:
    """From gradients to updates, of which minus the learning rate times each is added to the parameters.

    Args:
      stacked: from `moe.parallel.sharding.stacked_axes`.
    """
    if self.frozen:
      stacked = without(stacked, self.is_frozen)
    parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
    parts.append(self.scale(stacked))
    if self.weight_decay:
      parts.append(optax.add_decayed_weights(self.weight_decay, mask=lambda params: _is_matrix(params, stacked)))
    for part, factor in {"router": self.router_learning_rate, "experts": self.expert_learning_rate}.items():
      if factor != 1:
        parts.append(scale_part(part, factor))
    whole = optax.chain(*parts)
    return freeze(whole, self.is_frozen) if self.frozen else whole

  def is_frozen(self, path: str) -> bool:
    """Whether the parameter, or the router's state, of this path stays as it is, all of it."""
    return any(first is None and re.search(pattern, path) for pattern, first in map(_parted, self.frozen))

  @property
  def freezes_experts(self) -> bool:
    """Whether a part of some array may be frozen."""
    return any(first is not None for _, first in map(_parted, self.frozen))

  def frozen_experts(self, path: str) -> int:
    """How many of its first experts' parts stay as they are."""
    return max((first or 0 for pattern, first in map(_parted, self.frozen) if re.search(pattern, path)), default=0)

  def check_frozen(self, params: Any, router_state: Any, experts: Mapping[str, int]) -> None:
    """Raises `ConfigError` for a pattern that is found in no path of a model, and if it would not be trained at all.

    Args:
      params: of the model.
      router_state: likewise.
      experts: by path, how many experts those arrays have that have an axis of them.
    """
    trainable = by_path(params)
    every = [*trainable, *by_path(router_state)]
    for index, given in enumerate(self.frozen):
      pattern, first = _parted(given)
      paths, what = (every, "") if first is None else (list(experts), " with an axis of experts")
      found = [path for path in paths if re.search(pattern, path)]
      nearest = [] if found else difflib.get_close_matches(pattern, paths, 5, 0.0)
      wanted = f"expected to be found in the path of a parameter{what}, such as {', '.join(nearest)}"
      require(bool(found), f"frozen[{index}]", given, wanted)
      if first is not None:
        fewest = min(experts[path] for path in found)
        wanted = f"expected fewer than the {fewest} experts there are: what is frozen as a whole has no @"
        require(first < fewest, f"frozen[{index}]", given, wanted)
    trained = not all(map(self.is_frozen, trainable))
    require(trained, "frozen", self.frozen, "expected to leave some parameter to train")

  def make_schedule(self, total_steps: int) -> Schedule:
    """The learning rate as a function of the number of updates made so far."""
    return self.schedule.make(self.learning_rate, total_steps)

  def scale(self, stacked: StackedAxes) -> optax.GradientTransformation:
    """The optimizer's own part, from clipped gradients to updates."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Adafactor(OptimizerConfig, name="adafactor"):
  """Adafactor (Shazeer and Stern 2018), by default as in Zhou et al. 2022, section 4.1 (beta1 = 0, beta2 = 0.99).

  There is no momentum, and the second moment decays by min(b2, 1 - t^-0.8), as in GLaM, whose recipe the paper follows.

  Attributes:
    b2: upper bound of the second moment's decay.
    factored: whether matrices have row and column statistics instead of one number per weight.
    update_clip: largest root mean square of one matrix's update, before the learning rate.
    parameter_scale: whether the step is relative to the root mean square of the matrix (at least 1e-3).
  """

  b2: float = 0.99
  factored: bool = True
  update_clip: float = 1.0
  parameter_scale: bool = True

  def __post_init__(self) -> None:
    super().__post_init__()
    require(0 <= self.b2 < 1, "b2", self.b2, "expected at least 0 and less than 1")
    require(self.update_clip > 0, "update_clip", self.update_clip, "expected more than 0")

  def scale(self, stacked: StackedAxes) -> optax.GradientTransformation:
    def decay(count: jax.Array, exponent: float) -> jax.Array:
      return jnp.minimum(self.b2, 1.0 - (count + 1.0) ** -exponent)

    parts = [
      optax.scale_by_factored_rms(self.factored, decay_rate=0.8, decay_rate_fn=decay),
      optax.clip_by_block_rms(self.update_clip),
    ]
    if self.parameter_scale:
      parts.append(optax.scale_by_param_block_rms())
    return per_matrix(optax.chain(*parts), stacked)


@dataclasses.dataclass(frozen=True)
class AdamW(OptimizerConfig, name="adamw"):
  """AdamW (Loshchilov and Hutter 2019).

  Attributes:
    b1, b2: decays of the first and the second moment.
    epsilon: added to the square root of the second moment.
  """

  b1: float = 0.9
  b2: float = 0.98
  epsilon: float = 1e-8

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("b1", "b2"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "expected at least 0 and less than 1")
    require(self.epsilon > 0, "epsilon", self.epsilon, "expected more than 0")

  def scale(self, stacked: StackedAxes) -> optax.GradientTransformation:
    return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


def per_matrix(inner: optax.GradientTransformation, stacked: StackedAxes) -> optax.GradientTransformation:
  """`inner`, applied to each layer's and each expert's own matrix of a stacked parameter.

  The state is a tree like the parameters', with an inner state at each, stacked as the parameter is.
  """

  def mapped(function, axes: int):
    for _ in range(axes):
      function = jax.vmap(function)
    return function

  def init(params):
    return jax.tree.map(lambda leaf, axes: mapped(inner.init, axes)(leaf), params, stacked)

  def update(updates, state, params):
    leaves, structure = jax.tree.flatten(updates)
    others = (structure.flatten_up_to(tree) for tree in (state, params, stacked))
    moved = [mapped(inner.update, axes)(leaf, s, p) for leaf, s, p, axes in zip(leaves, *others)]
    return tuple(structure.unflatten(part) for part in zip(*moved))

  return optax.GradientTransformation(init, update)


def _parted(pattern: str) -> tuple[str, int | None]:
  """An entry of `frozen`: its regular expression, and the number of experts behind it, if there is one."""
  found = re.fullmatch(r"(.*)@([0-9]+)", pattern, re.DOTALL)
  return (found[1], int(found[2])) if found else (pattern, None)


def _is_matrix(params: Any, stacked: StackedAxes) -> Any:
  """True where a parameter, without its stacked axes, has at least two."""
  return jax.tree.map(lambda leaf, axes: leaf.ndim - axes >= 2, params, stacked)
