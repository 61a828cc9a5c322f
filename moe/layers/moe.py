"""The Mixture-of-Experts layer: a router makes a `Routing`, dispatch carries tokens out, combine brings them back."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moe.layers.activations import Form
from moe.layers.experts import Experts
from moe.parallel import local
from moe.routing import RaggedRouting, RouterConfig, RouterInput, RouterOutput, Routing, SlotRouting, SoftRouting


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerOutput:
  """What a layer reports beside its output.

  Attributes:
    auxiliary_loss: float32 scalar, weighted.
    metrics: float32 arrays by name: the router's metrics, and its unweighted losses as `loss/NAME`.
    routing: who went where; costs nothing in a compiled program that does not use it.
  """

  auxiliary_loss: jax.Array
  metrics: dict[str, jax.Array]
  routing: Routing


class MoE(nnx.Module):
  """`num_experts` feed-forward networks and the router that chooses among them. Adds no residual."""

  def __init__(
    self,
    num_experts: int,
    d_model: int,
    d_ff: int,
    form: Form,
    router: RouterConfig,
    dtype: jnp.dtype,
    *,
    rngs: nnx.Rngs,
  ):
    self.config = router
    self.router = router.make(d_model, num_experts, rngs)
    self.experts = Experts(num_experts, d_model, d_ff, form, dtype, rngs=rngs)

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
    group = self.config.router.group_size(self.config.options, batch, length)

    def grouped(array):
      return None if array is None else array.reshape(-1, group, *array.shape[2:])

    inputs = RouterInput(grouped(x), grouped(segments) > 0, grouped(ids), grouped(positions), key)
    output = self.router(inputs, training=training)
    return self._travel(inputs.tokens, output).reshape(x.shape), _report(output)

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
    return self._travel(one_group(x), output).reshape(x.shape), state

  def _travel(self, tokens: jax.Array, output: RouterOutput) -> jax.Array:
    """`[G, n, d]` to the experts and back."""
    routing, n = output.routing, tokens.shape[1]
    match routing:
      case SlotRouting():
        return local.combine_slots(self.experts.slots(local.dispatch_slots(tokens, routing)), routing, n)
      case RaggedRouting():
        return local.combine_ragged(self.experts.ragged(*local.dispatch_ragged(tokens, routing)), routing, n)
      case SoftRouting():
        return local.combine_soft(self.experts.slots(local.dispatch_soft(tokens, routing)), routing)


def _report(output: RouterOutput) -> LayerOutput:
  losses = {f"loss/{name}": value for name, value in output.losses.items()}
  return LayerOutput(output.auxiliary_loss, output.metrics | losses, output.routing)
