"""Layers to be compared: made on the CPU, with arrays that any device can be given."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.checks.agreement import on_cpu
from moe.experts import LayerReport, MoE
from moe.routing import Groups

BATCH, LENGTH, EXPERTS, VOCABULARY = 8, 32, 8, 64


class LayerArrays(NamedTuple):
  """What a layer is called with: NumPy arrays, or JAX's while it is traced.

  Attributes:
    x: float32 `[B, T, d]`, numbers that bfloat16 has too; the last quarter of the second row is padding.
    cotangent: of the output, the same shape.
    params, state: of the layer.
    segments, positions, ids: int32 `[B, T]`.
    key: the data of a PRNG key.
  """

  x: Any
  cotangent: Any
  params: Any
  state: Any
  segments: Any
  positions: Any
  ids: Any
  key: Any


class Layer:
  """A layer with a router that makes unequal choices.

  Args:
    router: its name or section.
    d_model: width of the tokens.
    d_ff: of an expert.
    dtype: of computation.

  Attributes:
    parameters: the variables, whose metadata say what their axes mean.
  """

  def __init__(self, router: str | Mapping[str, Any], d_model: int, d_ff: int, dtype: str = "float32"):
    with on_cpu():
      layer = MoE(
        *(d_model, EXPERTS, d_ff, router),
        dtype=dtype,
        # The initial matrices have a standard deviation of 0.02, with which gates hardly differ.
        router_init_scale=50 / d_model**0.5,
        vocab_size=VOCABULARY,
        rngs=nnx.Rngs(0),
      )
      graph, *states = nnx.split(layer, nnx.Param, ...)
      self._params, self._state = jax.tree.map(np.asarray, tuple(map(nnx.to_pure_dict, states)))
    self._graph, self._d_model, self._config, self.parameters = graph, d_model, layer.config, states[0]

  def groups(self, *, training: bool) -> Groups:
    """How the batch is divided."""
    return self._config.groups(BATCH, LENGTH, training=training)

  def draw(self, seed: int) -> LayerArrays:
    """Arguments of `apply`."""
    random, shape = np.random.default_rng(seed), (BATCH, LENGTH, self._d_model)
    x, cotangent = (random.normal(size=shape).astype(jnp.bfloat16).astype(np.float32) for _ in range(2))
    segments = np.ones((BATCH, LENGTH), np.int32)
    segments[1, -LENGTH // 4 :] = 0
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    ids = random.integers(2, VOCABULARY, (BATCH, LENGTH), np.int32)
    return LayerArrays(
      x, cotangent, self._params, self._state, segments, positions, ids, np.array([0, seed], np.uint32)
    )

  def apply(self, a: LayerArrays, *, training: bool) -> tuple[jax.Array, LayerReport, dict[str, Any]]:
    """Output, report and the state after a step."""
    layer = nnx.merge(self._graph, nnx.State(a.params), nnx.State(a.state), copy=True)
    about = {"segments": a.segments, "positions": a.positions, "ids": a.ids}
    key = jax.random.wrap_key_data(jnp.asarray(a.key)) if training else None
    y, report = layer(a.x, training=training, key=key, **about)
    if training:
      layer.learn(report)
    return y, report, nnx.to_pure_dict(nnx.state(layer, nnx.Not(nnx.Param)))

  def both_ways(self, value_of: Callable) -> Callable:
    """Of arguments as drawn, `value_of(y, report, cotangent)` with extras, and its gradients by parameters and tokens.

    The value includes everything that training adds to the loss.
    """

    def run(*arguments):
      a = LayerArrays(*arguments)

      def value(params, x):
        y, report, state = self.apply(a._replace(params=params, x=x), training=True)
        found, extras = value_of(y, report, a.cotangent)
        found += report.auxiliary_loss
        if report.policy is not None:
          found += (report.policy.log_prob * a.cotangent[..., 0] + report.policy.baseline).sum()
        return found, {"state": state, "metrics": report.metrics} | extras

      (_, extras), (d_params, d_x) = jax.value_and_grad(value, (0, 1), has_aux=True)(a.params, jnp.asarray(a.x))
      return extras | {"d_params": d_params, "d_x": d_x}

    return run
