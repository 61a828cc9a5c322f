"""The dense feed-forward network of a block: plain, or gated as in T5 1.1 (Shazeer 2020, "GLU variants")."""

import jax
import jax.numpy as jnp
from flax import nnx

from moe.nn.activations import ACTIVATIONS, GATED, Form
from moe.nn.dropout import dropout
from moe.nn.linear import T5_INIT, KernelInit, matmul, zeros


class FeedForward(nnx.Module):
  """`act(x U) D`, or `(act(x G) * x U) D` for the gated forms geglu and swiglu.

  Attributes:
    up: `[d, f]`; gate: the same, for gated forms only; down: `[f, d]`.
    up_bias, gate_bias, down_bias: `[f]`, `[f]` and `[d]` where they are wanted; else None.
  """

  def __init__(
    self,
    d_model: int,
    d_ff: int,
    form: Form,
    dtype: jnp.dtype,
    *,
    init: KernelInit = T5_INIT,
    bias: bool = False,
    rngs: nnx.Rngs,
  ):
    self.form, self.dtype = form, dtype
    self.up = init(rngs, (d_model, d_ff), d_model, ("embed", "ff"))
    self.down = init(rngs, (d_ff, d_model), d_ff, ("ff", "embed"))
    self.gate = init(rngs, (d_model, d_ff), d_model, ("embed", "ff")) if form in GATED else None
    self.up_bias = zeros((d_ff,), ("ff",)) if bias else None
    self.gate_bias = zeros((d_ff,), ("ff",)) if bias and form in GATED else None
    self.down_bias = zeros((d_model,), ("embed",)) if bias else None

  def __call__(self, x: jax.Array, *, rate: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """`[..., d]` to `[..., d]`; hidden units are dropped with probability `rate` if there is a key."""
    ups = (self.gate, self.gate_bias), (self.up, self.up_bias)
    before = [matmul(x, kernel, self.dtype, bias) for kernel, bias in ups if kernel is not None]
    hidden = ACTIVATIONS[self.form](*before)
    return matmul(dropout(hidden, rate, key), self.down, self.dtype, self.down_bias)
