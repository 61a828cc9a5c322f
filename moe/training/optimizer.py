"""Optimizers and learning-rate schedules.

Adafactor (Shazeer and Stern 2018) is set as the expert-choice paper sets it (Zhou et al. 2022, section 4.1: beta1 = 0,
beta2 = 0.99): no momentum, and a second-moment decay of min(0.99, 1 - t^-0.8) as in GLaM, whose recipe it follows.

The model stacks the layers of a scan on a leading axis, and experts on an axis of their own. Adafactor's statistics
belong to one matrix: pooled over layers or experts they would be another optimizer. `per_matrix` therefore maps the
transformation over those axes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from moe.config import require

# Modules whose parameters carry a leading axis that is not part of the matrix: scanned layers, then experts.
STACKING_MODULES = ("units", "experts")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How parameters move. Steps are counted from 1: the first update is step 1.

  Attributes:
    name: `adafactor` or `adamw`.
    learning_rate: the schedule's peak.
    schedule: after warm-up, `constant`; `constant_rsqrt`: constant until `decay_start`, then falling as 1/sqrt(step);
      `cosine` or `linear`: falling to `final_fraction` of the peak at the run's last step.
    warmup_steps: linear rise from 0, reached at this step.
    decay_start: the last constant step of `constant_rsqrt`; the paper's is 10,000.
    final_fraction: where `cosine` and `linear` end, as a fraction of the peak.
    weight_decay: decoupled, times the learning rate; on matrices only, not on norms and biases.
    clip_norm: the gradient's largest global norm; 0 turns clipping off.
    b1, b2, epsilon: AdamW's.
    adafactor_b2: upper bound of Adafactor's second-moment decay.
    factored: whether Adafactor keeps row and column statistics instead of one number a weight.
    update_clip: Adafactor's largest root mean square of one matrix's update, before the learning rate.
    parameter_scale: whether Adafactor's step is relative to the root mean square of the matrix (at least 1e-3).
  """

  name: Literal["adafactor", "adamw"] = "adafactor"
  learning_rate: float = 0.01
  schedule: Literal["constant_rsqrt", "cosine", "linear", "constant"] = "constant_rsqrt"
  warmup_steps: int = 0
  decay_start: int = 10_000
  final_fraction: float = 0.0
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.98
  epsilon: float = 1e-8
  adafactor_b2: float = 0.99
  factored: bool = True
  update_clip: float = 1.0
  parameter_scale: bool = True

  def __post_init__(self):
    require(self.learning_rate > 0, "learning_rate", self.learning_rate, "must be positive")
    require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "must not be negative")
    require(self.decay_start >= 1, "decay_start", self.decay_start, "must be at least 1")
    require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must not be negative")
    require(self.clip_norm >= 0, "clip_norm", self.clip_norm, "must not be negative; 0 turns clipping off")
    require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "must lie between 0 and 1")
    require(self.epsilon > 0, "epsilon", self.epsilon, "must be positive")
    require(self.update_clip > 0, "update_clip", self.update_clip, "must be positive")
    for name in ("b1", "b2", "adafactor_b2"):
      require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")


def make_schedule(config: OptimizerConfig, total_steps: int) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """The learning rate as a function of the number of updates made so far (0 before the first), as Optax counts."""

  def after_warmup(step):
    progress = jnp.clip((step - config.warmup_steps) / max(1, total_steps - config.warmup_steps), 0.0, 1.0)
    match config.schedule:
      case "constant":
        return 1.0
      case "constant_rsqrt":
        return jnp.sqrt(config.decay_start / jnp.maximum(step, config.decay_start))
      case "linear":
        return 1 - (1 - config.final_fraction) * progress
      case "cosine":
        return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(math.pi * progress))

  def schedule(count):
    step = jnp.asarray(count, jnp.float32) + 1
    return config.learning_rate * jnp.minimum(1.0, step / max(1, config.warmup_steps)) * after_warmup(step)

  return schedule


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
  """The whole transformation, from gradients to what is added to the parameters."""
  parts = []
  if config.clip_norm:
    parts.append(optax.clip_by_global_norm(config.clip_norm))
  if config.name == "adamw":
    parts.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
  else:
    parts.append(per_matrix(_adafactor(config)))
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, mask=_is_matrix))
  parts.append(optax.scale_by_learning_rate(make_schedule(config, total_steps)))
  return optax.chain(*parts)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
  """Adafactor for one matrix, up to the sign and the learning rate."""

  def decay(count, exponent):
    return jnp.minimum(config.adafactor_b2, 1.0 - (count + 1.0) ** -exponent)

  parts = [
    optax.scale_by_factored_rms(config.factored, decay_rate=0.8, decay_rate_fn=decay),
    optax.clip_by_block_rms(config.update_clip),
  ]
  if config.parameter_scale:
    parts.append(optax.scale_by_param_block_rms())
  return optax.chain(*parts)


def stacked_axes(path: tuple[Any, ...]) -> int:
  """How many leading axes of the parameter at `path` enumerate matrices instead of belonging to one."""
  names = [str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path]
  return sum(module in names for module in STACKING_MODULES)


def per_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """`inner`, applied to every layer's and every expert's own matrix of a stacked parameter.

  The state is a tree like the parameters', with an inner state at each, stacked as the parameter is.
  """

  def mapped(function, path):
    for _ in range(stacked_axes(path)):
      function = jax.vmap(function)
    return function

  def init(params):
    return jax.tree_util.tree_map_with_path(lambda path, leaf: mapped(inner.init, path)(leaf), params)

  def update(updates, state, params):
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    states, values = structure.flatten_up_to(state), structure.flatten_up_to(params)
    moved = [mapped(inner.update, path)(leaf, s, p) for (path, leaf), s, p in zip(leaves, states, values)]
    return tuple(structure.unflatten(part) for part in zip(*moved))

  return optax.GradientTransformation(init, update)


def _is_matrix(params: Any) -> Any:
  """True where a parameter, without its stacked axes, has at least two."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim - stacked_axes(path) >= 2, params)
