"""E feed-forward networks side by side: weights `[E, d, f]`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from moe.experts.biases import Biases
from moe.experts.kernels.dropout import HiddenDropout
from moe.experts.kernels.ragged import ragged_feed_forward
from moe.experts.kernels.recompute import activate_and_project
from moe.nn.activations import ACTIVATIONS, GATED, Form
from moe.nn.linear import KernelInit
from moe.parallel.kept import kept


class Weights(NamedTuple):
  """The experts' matrices: one or two `[E, d, f]` before the activation, one after it, used transposed.

  With them go the biases `[E, f]` before the activation, if there are any.
  """

  ups: list[jax.Array]
  down: jax.Array
  biases: list[jax.Array]


class Experts(nnx.Module):
  """E independent feed-forward networks (Zhou et al. 2022, eq. 3: `gelu(x W1) W2`; gated forms as in T5 1.1).

  Attributes:
    up: `[E, d, f]`.
    gate: `[E, d, f]`, for gated forms only.
    down: `[E, d, f]`, used transposed, because CPUs then compute its gradient fastest.
    biases: of the same names, where they are wanted: `[E, f]`, `[E, f]` and `[E, d]` (`moe.experts.biases`).
  """

  def __init__(
    self,
    num_experts: int,
    d_model: int,
    d_ff: int,
    form: Form,
    dtype: jnp.dtype,
    init: KernelInit,
    *,
    bias: bool = False,
    rngs: nnx.Rngs,
  ):
    self.activation, self.dtype = ACTIVATIONS[form], dtype

    def parameter(fan_in: int) -> nnx.Param:
      return init(rngs, (num_experts, d_model, d_ff), fan_in, ("expert", "embed", "ff"))

    self.up, self.down = parameter(d_model), parameter(d_ff)
    self.gate = parameter(d_model) if form in GATED else None
    self.down.set_metadata(rows=1)
    self.biases = Biases(num_experts, d_model, d_ff, form in GATED, rngs=rngs) if bias else None

  @jax.named_scope("experts")
  def weights(self) -> Weights:
    """The parameters in the compute dtype, as `slots` and `ragged` take them."""
    ups = [w[...].astype(self.dtype) for w in (self.gate, self.up) if w is not None]
    biases = [] if self.biases is None else [b[...].astype(self.dtype) for b in self.biases.before()]
    return Weights(ups, self.down[...].astype(self.dtype), biases)

  @jax.named_scope("experts")
  def slots(self, weights: Weights, inputs: jax.Array, dropout: HiddenDropout | None = None) -> jax.Array:
    """Each expert on its own rows, `[E, R, d]` to `[E, R, d]`, for all experts or the shard that `weights` holds."""
    before = [jnp.einsum("erd,edf->erf", inputs, up) for up in weights.ups]
    if weights.biases:
      before = [product + bias[:, None] for product, bias in zip(before, weights.biases, strict=True)]
    before = [kept(product) for product in before]
    return kept(activate_and_project(self.activation, before, weights.down, dropout))

  @jax.named_scope("experts")
  def ragged(
    self, weights: Weights, tokens: jax.Array, *runs: jax.Array, dropout: HiddenDropout | None = None
  ) -> jax.Array:
    """`[N, d]` to `[N, d]`: each token's weighted sum over its assignments, the `runs` from `runs_by_expert`."""
    rows, weight, sizes = runs
    return ragged_feed_forward(self.activation, tokens, rows, weight, sizes, *weights, dropout=dropout)
