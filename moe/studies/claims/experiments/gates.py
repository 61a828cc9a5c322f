"""A layer of units behind stochastic gates, trained on digits by one estimator of the gates' gradients or another."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.nn.linear import affine
from moe.routing.methods.stochastic_units import sparsity_loss
from moe.routing.solvers.estimators import (
  firing_probability,
  minimum_variance_baseline,
  noisy_rectifier,
  reinforce_gradient,
  stochastic_times_smooth,
  straight_through,
)

_TARGET = 0.1  # share of the gates that are to be open
_SPARSITY = 0.1  # weight of the divergence from it, per gate
_KEPT = 0.9  # of REINFORCE's baseline from batch to batch
_BATCH = 100
_DRAWS = 4  # of the gates in evaluation, whose mean probabilities decide

Digits = tuple[np.ndarray, np.ndarray]  # float32 [n, pixels] between 0 and 1, int32 [n]
Weights = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Gate:
  """A stochastic unit.

  Attributes:
    draw: its random numbers, of a key and a shape.
    unit: its output h, of activations and random numbers; its derivative is the estimator's.
    rate: the probability that h is not 0, of activations.
    start: the activation whose rate is the target.
  """

  draw: Callable[..., jax.Array]
  unit: Callable[[jax.Array, jax.Array], jax.Array]
  rate: Callable[[jax.Array], jax.Array]
  start: float


def _bernoulli(activation: jax.Array, uniform: jax.Array) -> jax.Array:
  return jax.lax.stop_gradient(straight_through(activation, uniform))


def _logit(p: float) -> float:
  return math.log(p / (1 - p))


_BINARY = Gate(jax.random.uniform, _bernoulli, jax.nn.sigmoid, _logit(_TARGET))
GATES = {
  "straight_through": dataclasses.replace(_BINARY, unit=straight_through),
  "stochastic_times_smooth": Gate(jax.random.uniform, stochastic_times_smooth, firing_probability, _logit(_TARGET**2)),
  "noisy_rectifier": Gate(jax.random.normal, noisy_rectifier, jax.scipy.stats.norm.cdf, -1.2816),
  "reinforce": _BINARY,
}
FROZEN = "frozen"  # binary gates whose path is not trained
_ALL = {**GATES, FROZEN: _BINARY}


def init(arm: str, units: int, hidden: int, pixels: int, key: jax.Array) -> Weights:
  """Weights of the gates' path and of the main one; biases are 0, but for those that open a tenth of the gates."""
  shapes = {"gate": ((pixels, hidden), (hidden, units)), "main": ((pixels, units), (units, 10))}

  def matrix(key: jax.Array, rows: int, columns: int, bias: float) -> jax.Array:
    return jnp.pad(jax.random.normal(key, (rows, columns)) / rows**0.5, ((0, 1), (0, 0)), constant_values=bias)

  keys = iter(jax.random.split(key, 4))
  starts = {"gate": _ALL[arm].start, "main": 0.0}
  return {
    path: {"in": matrix(next(keys), *first, 0.0), "out": matrix(next(keys), *second, starts[path])}
    for path, (first, second) in shapes.items()
  }


def _gated(weights: Weights, x: jax.Array, gate: Gate, key: jax.Array, *, frozen: bool) -> tuple[jax.Array, ...]:
  """Activations and outputs of the gates `[n, units]`, and the logits `[n, 10]`."""
  activation = affine(jnp.tanh(affine(x, weights["gate"]["in"])), weights["gate"]["out"])
  activation = jax.lax.stop_gradient(activation) if frozen else activation
  h = gate.unit(activation, gate.draw(key, activation.shape))
  return activation, h, affine(h * jax.nn.relu(affine(x, weights["main"]["in"])), weights["main"]["out"])


def loss(
  weights: Weights, x: jax.Array, y: jax.Array, baseline: jax.Array, key: jax.Array, arm: str
) -> tuple[jax.Array, jax.Array]:
  """The mean loss of a batch, whose derivative is the arm's estimate, and REINFORCE's next baseline `[units]`."""
  gate = _ALL[arm]
  activation, h, logits = _gated(weights, x, gate, key, frozen=arm == FROZEN)
  each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
  total = each.mean() + _SPARSITY * h.shape[1] * sparsity_loss(gate.rate(activation).mean(0), _TARGET)
  if arm == "reinforce":
    estimate = jax.lax.stop_gradient(reinforce_gradient(h, activation, each[:, None], baseline))
    total += (estimate * activation).sum(1).mean()
    found = jax.lax.stop_gradient(minimum_variance_baseline(h, activation, each))
    baseline = _KEPT * baseline + (1 - _KEPT) * found  # of earlier batches alone, so that it knows nothing of h
  return total, baseline


@functools.partial(jax.jit, static_argnames=("arm", "sizes"))
def trained(
  arm: str, sizes: tuple[int, int, int], digits: Digits, rate: float, gate_rate: float, key: jax.Array
) -> Weights:
  """The weights after training with Adam.

  Args:
    arm: its name.
    sizes: units, hidden units of the gates' path, passes over the pictures.
    digits: to train on.
    rate: at the start.
    gate_rate: that of the gates' path, relative to it.
    key: of initial weights, order and gates.
  """
  (units, hidden, epochs), (x, y) = sizes, (jnp.asarray(digits[0]), jnp.asarray(digits[1]))
  batch = min(_BATCH, len(x))
  starting, ordering, drawing = jax.random.split(key, 3)
  orders = [jax.random.permutation(one, len(x)) for one in jax.random.split(ordering, epochs)]
  batches = jnp.concatenate([order[: len(x) // batch * batch] for order in orders]).reshape(-1, batch)
  adam, weights = optax.scale_by_adam(), init(arm, units, hidden, x.shape[1], starting)
  factors = {"gate": gate_rate, "main": 1.0}

  def step(carry: Any, at: Any) -> tuple[Any, None]:
    weights, state, baseline = carry
    number, chosen = at
    keyed = jax.random.fold_in(drawing, number)
    grads, baseline = jax.grad(loss, has_aux=True)(weights, x[chosen], y[chosen], baseline, keyed, arm)
    updates, state = adam.update(grads, state)
    now = rate * (1 - number / len(batches))
    weights = {
      path: jax.tree.map(lambda w, u, times=factors[path]: w - now * times * u, weights[path], updates[path])
      for path in weights
    }
    return (weights, state, baseline), None

  carry = (weights, adam.init(weights), jnp.full(units, math.log(10)))
  return jax.lax.scan(step, carry, (jnp.arange(len(batches)), batches))[0][0]


@functools.partial(jax.jit, static_argnames="arm")
def evaluated(arm: str, weights: Weights, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The share of wrong answers, by mean probabilities over draws of the gates, and that of the open gates."""

  def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    _, h, logits = _gated(weights, x, _ALL[arm], key, frozen=False)
    return jax.nn.softmax(logits), (h != 0).mean()

  probs, is_open = jax.lax.map(draw, jax.random.split(jax.random.key(0), _DRAWS))
  return (probs.mean(0).argmax(1) != y).mean(), is_open.mean()


def gradient_moments(arm: str, problems: int, units: int = 3) -> dict[str, float]:
  """Bias and spread of an estimator against the exact gradient of the expected loss, by enumeration.

  The loss is the cross-entropy of three classes, linear in the units. Squares are summed over random problems.

  Returns:
    `bias`: that of the mean estimate, and `spread`: its standard deviation, both relative to the exact gradient's norm;
    `cosine` between both, in the mean.
  """
  gate, is_binary = GATES[arm], arm != "noisy_rectifier"
  # Uniform numbers of 0 and 1 stand for all that open a gate, and all that do not.
  values = np.array([1.0, 0.0]) if is_binary else np.asarray(jax.scipy.stats.norm.ppf((np.arange(16) + 0.5) / 16))
  draws = jnp.asarray(list(itertools.product(values, repeat=units)), jnp.float32)  # [outcomes, units]
  binary = arm in ("straight_through", "reinforce")

  def moments(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    start, readout = jax.random.normal(key, (4, units))[0], 2 * jax.random.normal(key, (4, units))[1:]
    cost = lambda h: -jax.nn.log_softmax(h @ readout.T)[..., 0]  # noqa: E731

    def probability(a: jax.Array) -> jax.Array:
      rate = gate.rate(a)
      return jnp.where(draws == 0, rate, 1 - rate).prod(1) if is_binary else jnp.full(len(draws), 1 / len(draws))

    unit = _bernoulli if binary else gate.unit
    exact = jax.grad(lambda a: probability(a) @ cost(unit(a, draws)))(start)
    chances = probability(start)
    if arm == "reinforce":
      h = unit(start, draws)
      best = minimum_variance_baseline(h, jnp.broadcast_to(start, h.shape), cost(h), chances)
      estimates = reinforce_gradient(h, start, cost(h)[:, None], best)
    else:
      estimates = jax.vmap(jax.grad(lambda a, draw: cost(gate.unit(a, draw))), (None, 0))(start, draws)
    mean = chances @ estimates
    return exact, mean, chances @ jnp.square(estimates - mean).sum(1)

  exact, mean, variance = jax.jit(jax.vmap(moments))(jax.random.split(jax.random.key(0), problems))
  norm = jnp.square(exact).sum(1).mean()
  cosine = (exact * mean).sum(1) / (jnp.linalg.norm(exact, axis=1) * jnp.linalg.norm(mean, axis=1))
  found = {"bias": jnp.sqrt(jnp.square(mean - exact).sum(1).mean() / norm), "spread": jnp.sqrt(variance.mean() / norm)}
  return {name: float(value) for name, value in (found | {"cosine": cosine.mean()}).items()}
