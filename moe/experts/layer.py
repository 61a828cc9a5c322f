"""The Mixture-of-Experts layer: a router makes a `Routing`, dispatch carries tokens out, combine brings them back."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.experts.exchange.travel import through_experts
from moe.experts.network import Experts
from moe.nn.activations import Form
from moe.nn.feed_forward import FeedForward
from moe.routing import Groups, Policy, RouterConfig, RouterInput, RouterOutput, Routing, Site


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerOutput:
  """What a layer reports beside its output.

  Attributes:
    auxiliary_loss: float32 scalar, weighted.
    metrics: float32 arrays by name: the router's metrics, and its unweighted losses as `loss/NAME`.
    routing: who went where; costs nothing in a compiled program that does not use it.
    policy: `[B, T]` of a router that learns by REINFORCE, in training; else None.
  """

  auxiliary_loss: jax.Array
  metrics: dict[str, jax.Array]
  routing: Routing
  policy: Policy | None


class MoE(nnx.Module):
  """`num_experts` feed-forward networks and the router that chooses among them. Adds no residual.

  Args:
    num_experts: E.
    d_model: width of the tokens.
    d_ff: hidden width of an expert.
    form: of an expert.
    router: name and options.
    dtype: of the experts' computation.
    shared_experts: experts besides, as one network of that many times `d_ff`, which see every token with weight 1
      (Dai et al. 2024, DeepSeekMoE, section 3.2).
    vocab_size: of the token ids, for routers that look at them.
  """

  def __init__(
    self,
    num_experts: int,
    d_model: int,
    d_ff: int,
    form: Form,
    router: RouterConfig,
    dtype: jnp.dtype,
    *,
    shared_experts: int = 0,
    vocab_size: int | None = None,
    rngs: nnx.Rngs,
  ):
    self.config = router
    self.router = router.make(Site(d_model, num_experts, vocab_size), rngs)
    self.experts = Experts(num_experts, d_model, d_ff, form, dtype, rngs=rngs)
    self.shared = FeedForward(d_model, shared_experts * d_ff, form, dtype, rngs=rngs) if shared_experts else None

  def __call__(
    self,
    x: jax.Array,
    *,
    segments: jax.Array,
    ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    training: bool,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, LayerOutput]:
    """Applies the layer to a batch.

    Args:
      x: `[B, T, d]`.
      segments: int32 `[B, T]`, 0 for padding.
      ids: int32 `[B, T]` token ids, for routers that look at them.
      positions: int32 `[B, T]`, position within the token's sequence.
      training: whether the router may be random and takes its training capacity.
      key: PRNG key, needed only by routers that are random in training.

    Returns:
      `[B, T, d]` and the layer's report.
    """
    batch, length, _ = x.shape
    groups = self.config.groups(batch, length)

    def cut(array):
      return None if array is None else groups.cut(array)

    inputs = RouterInput(groups.cut(x), groups.cut(segments) > 0, cut(ids), cut(positions), key)
    with jax.named_scope("router"):
      output = self.router(inputs, training=training)
    y = self._travel(x, groups, output.routing)
    policy = output.policy and dataclasses.replace(
      output.policy,
      log_prob=groups.join(output.policy.log_prob, batch, length),
      baseline=groups.join(output.policy.baseline, batch, length),
    )
    return self._with_shared(y, x), _report(output, policy)

  def init_decode_state(self, batch: int, length: int) -> dict[str, jax.Array]:
    """The router's memory for decoding `batch` sequences of at most `length` tokens."""
    return self.router.init_decode_state(batch, length)

  def decode(
    self,
    x: jax.Array,
    state: dict[str, jax.Array],
    ids: jax.Array | None = None,
    positions: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One new token of each sequence, `[B, 1, d]`, routed as the whole sequence would have been in evaluation mode."""

    def one_group(array):
      return None if array is None else array.reshape(1, x.shape[0], *array.shape[2:])

    mask = jnp.ones((1, x.shape[0]), bool)
    output, state = self.router.decode(RouterInput(one_group(x), mask, one_group(ids), one_group(positions)), state)
    return self._with_shared(self._travel(x, Groups(x.shape[0]), output.routing), x), state

  def _with_shared(self, y: jax.Array, x: jax.Array) -> jax.Array:
    return y if self.shared is None else y + self.shared(x)

  @jax.named_scope("dispatch")
  def _travel(self, x: jax.Array, groups: Groups, routing: Routing) -> jax.Array:
    return through_experts(x.astype(self.experts.dtype), groups, routing, self.experts, self.experts.weights())


def _report(output: RouterOutput, policy: Policy | None) -> LayerOutput:
  losses = {f"loss/{name}": value for name, value in output.losses.items()}
  return LayerOutput(output.auxiliary_loss, output.metrics | losses, output.routing, policy)
