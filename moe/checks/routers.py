"""Every router alone: its decision in training and in evaluation, its losses, gradients and next state."""

import jax.numpy as jnp

from moe.checks.agreement import Case
from moe.checks.layers import Layer, LayerArrays
from moe.routing import RouterConfig, routing_weights

_D, _D_FF = 32, 8


def router_case(name: str) -> Case:
  """A router with its default options, on tokens of bfloat16; on the CPU the same numbers are float32.

  Products on the device have its default precision, as in training: routers themselves ask for more where they must.
  """
  layer = Layer(name, _D, _D_FF)

  def weights(report, training):
    return routing_weights(report.routing, layer.groups(training=training).size)

  def value_of(y, report, cotangent):
    del y  # without it the compiler drops the experts
    found = weights(report, True)
    gains = layer.groups(training=True).cut(jnp.asarray(cotangent, jnp.float32))[..., : found.shape[-1]]
    return (found * gains).sum(), {"weights": found}

  both_ways = layer.both_ways(value_of)

  def run(*arguments):
    evaluated = layer.apply(LayerArrays(*arguments), training=False)[1]
    return both_ways(*arguments) | {"evaluated": weights(evaluated, False)}

  def operands(arguments):
    return (arguments[0].astype(jnp.bfloat16), *arguments[1:])

  return Case(run, run, layer.draw, 1e-3, operands, discrete=True)


def router_names() -> list[str]:
  """All of them."""
  return sorted(RouterConfig.choices)
