"""A Mixture-of-Experts layer as programs to be timed: forward and backward, as in a training step.

Everything that a step needs from the layer is a result of the program, so that the compiler leaves nothing out: the
output, the router's losses, all gradients, the metrics, the router's next state.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe.config import require
from moe.experts import LayerReport, MoE
from moe.experts.network import Experts
from moe.nn.linear import T5_INIT
from moe.routing import (
  Router,
  RouterConfig,
  RouterInput,
  RouterOutput,
  RouterState,
  Routing,
  Site,
  SoftRouting,
)
from moe.routing.budget import ExpertBudgetConfig
from moe.routing.methods.soft_expert_choice import SoftExpertChoiceConfig
from moe.routing.methods.strictly_balanced import StrictlyBalancedConfig
from moe.routing.policy import policy_loss

VOCABULARY = 8192

# A compiled function and its arguments.
Program = tuple[Callable, tuple]


def compared_routers(k: int, group_size: int) -> dict[str, dict[str, Any]]:
  """The router sections that are measured next to a dense network: k experts per token, and expert choice's groups."""
  return {
    "expert choice": {"name": "expert_choice", "capacity_factor": k, "group_size": group_size},
    f"top-{k}": {"name": "token_choice", "top_k": k, "capacity_factor": k},
    f"top-{k} dropless": {"name": "token_choice", "top_k": k, "capacity_factor": None},
  }


@dataclasses.dataclass(frozen=True)
class LayerCase:
  """A layer and the shape of its input.

  Attributes:
    router: its router.
    tokens: per batch.
    sequence: tokens per sequence; divides `tokens`.
    experts: E.
    d_model, d_ff: widths of a token and of an expert.
    dtype: of computation.
    masks: dispatch by one-hot masks `[G, n, E, C]` and matrix products instead of by index; only for routers with
      slots.
  """

  router: RouterConfig
  tokens: int
  sequence: int
  experts: int
  d_model: int
  d_ff: int
  dtype: str = "float32"
  masks: bool = False

  def check(self) -> None:
    """Raises `ConfigError` if the router cannot be used in this layer or on a batch of this shape."""
    require(self.tokens % self.sequence == 0, "tokens", self.tokens, f"expected a multiple of {self.sequence}")
    site = Site(self.d_model, self.experts, VOCABULARY)
    self.router.check(site, *self.rows)

  @property
  def rows(self) -> tuple[int, int]:
    """The number of sequences and their length."""
    return self.tokens // self.sequence, self.sequence


class LayerPrograms:
  """The programs of one case.

  Attributes:
    routing: the type of `Routing` that the router returns.
  """

  def __init__(self, case: LayerCase):
    dtype = jnp.dtype(case.dtype)
    sizes = (case.d_model, case.experts, case.d_ff)
    layer = MoE(*sizes, case.router, dtype=dtype, vocab_size=VOCABULARY, rngs=nnx.Rngs(0))
    layer.experts = _experts(*sizes, dtype)
    if case.masks:
      layer.router = _Masks(layer.router)
    self._graph, *states = nnx.split(layer, nnx.Param, ...)
    self._params, self._rest = states
    self._x, self._cotangent, self._about = _batch(*case.rows, case.d_model, dtype)
    self.routing: type[Routing] = type(jax.eval_shape(lambda p, x: self._apply(p, x)[1], self._params, self._x).routing)

  def whole(self) -> Program:
    """Forward and backward of the whole layer; the last result is the metrics."""

    def outputs(params, x):
      y, report, state = self._apply(params, x)
      return (y, _losses(report)), (state, report.metrics)

    return _compiled(outputs, self._params, self._x, (self._cotangent, jnp.ones(())))

  def decision(self) -> Program:
    """Forward and backward of the router alone, without dispatch and experts."""

    def outputs(params, x):
      _, report, state = self._apply(params, x)
      return sum((leaf.sum() for leaf in jax.tree.leaves(report.routing)), _losses(report)), (state, report.metrics)

    return _compiled(outputs, self._params, self._x, jnp.ones(()))

  def _apply(self, params, x) -> tuple[jax.Array, LayerReport, nnx.State]:
    layer = nnx.merge(self._graph, params, self._rest, copy=True)
    y, report = layer(x, training=True, **self._about)
    layer.learn(report)
    return y, report, nnx.state(layer, RouterState)


@dataclasses.dataclass(frozen=True)
class Work:
  """How many experts the tokens of a layer use, on average.

  Attributes:
    budget: what the router's options ask for; where they ask for no number, what the router assigned.
    done: what the experts compute, empty slots included.
  """

  budget: float
  done: float


def measured_work(program: Program, case: LayerCase) -> Work:
  """The work of a `LayerPrograms.whole`, by the router's own metrics."""
  function, arguments = program
  *_, (_, metrics) = function(*arguments)
  asked = _asked(case)
  budget = float(metrics["assignments"]) if asked is None else asked
  return Work(budget, float(metrics["capacity_factor"]))


def _asked(case: LayerCase) -> float | None:
  """Experts per token that the router's options ask for; None if that is not an option."""
  router = case.router
  for name in ("top_k", "k", "experts_per_token"):
    if hasattr(router, name):
      return getattr(router, name)
  if isinstance(router, ExpertBudgetConfig | SoftExpertChoiceConfig | StrictlyBalancedConfig):
    return router.capacity_factor
  return None


def one_hot_masks(routing: Any, n: int) -> SoftRouting:
  """The same slots as masks `[G, n, E, C]`: 1 where a token has a slot, and its weight there."""
  dispatch = (routing.token[:, None] == jnp.arange(n)[:, None, None]).astype(jnp.float32)
  return SoftRouting(dispatch, dispatch * routing.weight[:, None])


class _Masks(Router):
  """A router that returns its slots as masks."""

  def __init__(self, router: Router):
    self.router = router

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    output = self.router(inputs, training=training)
    return dataclasses.replace(output, routing=one_hot_masks(output.routing, inputs.tokens.shape[1]))


def _compiled(outputs: Callable, params: Any, x: jax.Array, cotangent: Any) -> Program:
  """Compiles `outputs`, from `(params, x)` to differentiable and auxiliary results, forward and backward."""

  def run(params, x, cotangent):
    y, pull_back, extra = jax.vjp(outputs, params, x, has_aux=True)
    return y, pull_back(cotangent), extra

  return jax.jit(run).lower(params, x, cotangent).compile(), (params, x, cotangent)


def _losses(report: LayerReport) -> jax.Array:
  """Everything that training adds to the objective; for a REINFORCE router every token costs one nat."""
  if report.policy is None:
    return report.auxiliary_loss
  cost = jnp.ones_like(report.policy.log_prob)
  return report.auxiliary_loss + policy_loss(report.policy, cost, cost > 0)


# Layers that are measured side by side share their largest arrays.
@functools.lru_cache(maxsize=1)
def _experts(d_model: int, num_experts: int, d_ff: int, dtype: jnp.dtype) -> Experts:
  return Experts(num_experts, d_model, d_ff, "gelu", dtype, T5_INIT, rngs=nnx.Rngs(0))


@functools.lru_cache(maxsize=1)
def _batch(batch: int, length: int, d_model: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
  """Tokens `[B, T, d]`, the gradient of the output, and the layer's other arguments."""
  keys = jax.random.split(jax.random.key(0), 4)
  x, cotangent = (jax.random.normal(key, (batch, length, d_model), dtype) for key in keys[:2])
  about = {
    "segments": jnp.ones((batch, length), jnp.int32),
    "ids": jax.random.randint(keys[2], (batch, length), 2, VOCABULARY),
    "positions": jnp.broadcast_to(jnp.arange(length), (batch, length)),
    "key": keys[3],
  }
  return x, cotangent, about
