"""T5's multi-head attention (Raffel et al. 2020), without 1/sqrt(d_head), which the initialisation absorbs.

Biases, which T5 has not, are for Vision Transformers.

Axis names beyond `moe.routing.types`: Q query positions, K key positions, h heads, w width of a head.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from moe.nn import attention_kernels
from moe.nn.dropout import dropout
from moe.nn.linear import T5_INIT, KernelInit, matmul, zeros
from moe.nn.relative_position import expanded
from moe.parallel.kept import kept
from moe.parallel.mesh import ROW_AXES, current_mesh, row_shards


def segment_mask(query: jax.Array, key: jax.Array, *, causal: bool = False) -> jax.Array:
  """Which tokens attend to which: those of the same segment, and if `causal` only those not later in the row.

  Padding is segment 0 and sees only padding, so no row of the mask is empty.

  Args:
    query: int32 `[B, Q]` segments.
    key: int32 `[B, K]` segments; `K = Q` if causal.
    causal: whether the future is hidden.

  Returns:
    bool `[B, 1, Q, K]`.
  """
  mask = query[:, None, :, None] == key[:, None, None, :]
  return mask & jnp.tri(query.shape[1], dtype=bool) if causal else mask


def segment_positions(segments: jax.Array) -> jax.Array:
  """int32 `[B, T]`: the position of each token within its segment, from `segments` int32 `[B, T]`."""
  index = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
  starts = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
  return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


class Attention(nnx.Module):
  """Self- or cross-attention of `num_heads` heads of width `d_head`. Logits and softmax are float32.

  Attributes:
    query, key, value: `[d, h * w]`; out: `[h * w, d]`.
    biases: of the same names, where they are wanted: `[h * w]` and `[d]`.
  """

  def __init__(
    self,
    d_model: int,
    num_heads: int,
    d_head: int,
    dtype: jnp.dtype,
    *,
    init: KernelInit = T5_INIT,
    bias: bool = False,
    rngs: nnx.Rngs,
  ):
    self.num_heads, self.d_head, self.dtype = num_heads, d_head, dtype
    inner = num_heads * d_head
    self.query = init(rngs, (d_model, inner), d_model * d_head, ("embed", "heads"))
    self.key = init(rngs, (d_model, inner), d_model, ("embed", "heads"))
    self.value = init(rngs, (d_model, inner), d_model, ("embed", "heads"))
    self.out = init(rngs, (inner, d_model), inner, ("heads", "embed"))
    inner_bias = {name: zeros((inner,), ("heads",)) for name in ("query", "key", "value")} if bias else {}
    self.biases = nnx.Dict(inner_bias | ({"out": zeros((d_model,), ("embed",))} if bias else {}))

  def __call__(
    self,
    x: jax.Array,
    memory: jax.Array,
    mask: jax.Array,
    bias: jax.Array | None = None,
    *,
    rate: float = 0.0,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Queries of `x` attend to `memory`.

    Args:
      x: `[B, Q, d]`.
      memory: `[B, K, d]`; `x` itself for self-attention.
      mask: bool, broadcastable to `[B, h, Q, K]`; a query with everything masked attends to everything.
      bias: float32 `[S, h, Q, K]`, added to the logits, or what `expanded` makes it of; S is 1, or on a mesh the number
        of row shards, in order.
      rate: probability of dropping an attention weight.
      key: PRNG key for dropout; None drops nothing.
    """
    return self.attend(x, *self.project(memory), mask, bias, rate=rate, key=key)

  @jax.named_scope("attention")
  def project(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values `[B, h, K, w]` of `memory [B, K, d]`."""
    keys, values = self._product(memory, "key"), self._product(memory, "value")
    return self._heads(keys), self._heads(values)

  @jax.named_scope("attention")
  def attend(
    self,
    x: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    bias: jax.Array | None = None,
    *,
    rate: float = 0.0,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """`__call__` with keys and values from `project`."""
    queries = self._heads(self._product(x, "query"))
    if key is not None and rate > 0:
      mixed = weighted_values(queries, keys, values, bias, mask, rate, key)
    else:
      mixed = _attend(queries, keys, values, bias, mask)
    return self._product(kept(mixed.swapaxes(1, 2).reshape(*x.shape[:-1], -1)), "out")

  def init_cache(self, batch: int, length: int) -> dict[str, jax.Array]:
    """An empty cache for the keys and values of `length` positions."""
    empty = jnp.zeros((batch, self.num_heads, length, self.d_head), self.dtype)
    return {"keys": empty, "values": empty}

  def step(
    self, x: jax.Array, cache: dict[str, jax.Array], position: jax.Array, mask: jax.Array, bias: jax.Array | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Self-attention of the token `x [B, 1, d]` at `position` (int32 scalar), whose key and value enter the cache."""
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(cache[name], new, position, axis=2)
      for name, new in zip(("keys", "values"), self.project(x), strict=True)
    )
    return self.attend(x, keys, values, mask, bias), {"keys": keys, "values": values}

  def _product(self, x: jax.Array, name: str) -> jax.Array:
    return matmul(x, getattr(self, name), self.dtype, self.biases.get(name))

  def _heads(self, x: jax.Array) -> jax.Array:
    """`[B, T, h * w]` to `[B, h, T, w]`: with the batch axes first, CPUs need not transpose the products."""
    return x.reshape(*x.shape[:-1], self.num_heads, self.d_head).swapaxes(1, 2)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array) -> jax.Array:
  """`weighted_values`, without the logits in memory where the platform has kernels for it."""
  (batch, heads, queries, width), keys, mesh = q.shape, k.shape[2], current_mesh()
  shards, columns = (1, 1) if mesh is None else (row_shards(mesh), mesh.shape["model"])
  divides = batch % shards == 0 and heads % columns == 0
  in_tiles = bias is None or (bias.ndim == 5 and len(bias) == shards)
  if not divides or not in_tiles or not attention_kernels.takes(queries, keys, width):
    return weighted_values(q, k, v, bias, mask)
  mask = jnp.broadcast_to(mask, (batch, 1, queries, keys)).astype(jnp.int8)
  if mesh is None:
    return _fused(q, k, v, bias, mask)
  by_head, by_row = PartitionSpec(ROW_AXES, "model"), PartitionSpec(ROW_AXES)
  specs = by_head, by_head, by_head, by_head, by_row  # compilers do not shard kernels
  return jax.shard_map(_fused, mesh=mesh, in_specs=specs, out_specs=by_head)(q, k, v, bias, mask)


@jax.custom_vjp
def _fused(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, mask: jax.Array) -> jax.Array:
  """`weighted_values` on one device, whose backward pass recomputes the logits: none are kept, on any platform."""
  return jax.lax.platform_dependent(q, k, v, bias, mask, tpu=attention_kernels.forward, default=weighted_values)


def _fused_forward(*arrays):
  return _fused(*arrays), arrays


def _fused_backward(arrays, gradient):
  backward = jax.lax.platform_dependent(*arrays, gradient, tpu=attention_kernels.gradients, default=gradients)
  return *backward, None


_fused.defvjp(_fused_forward, _fused_backward)


def gradients(q, k, v, bias, mask, gradient):
  """Of `weighted_values`, with respect to q, k, v and bias, from that of the result."""
  return jax.vjp(lambda *arrays: weighted_values(*arrays, mask), q, k, v, bias)[1](gradient)


def weighted_values(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None,
  mask: jax.Array,
  rate: float = 0.0,
  key: jax.Array | None = None,
) -> jax.Array:
  """`[B, h, Q, w]`: values weighted by the softmax of the logits; arguments as those of `Attention.attend`."""
  logits = jnp.einsum("bhqw,bhkw->bhqk", q, k, preferred_element_type=jnp.float32)  # [B, h, Q, K]
  logits = logits if bias is None else logits + _for_each(expanded(bias, q.shape[2]), len(q))
  weights = jax.nn.softmax(jnp.where(mask.astype(bool), logits, attention_kernels.MASKED), axis=-1)
  return jnp.einsum("bhqk,bhkw->bhqw", dropout(weights, rate, key).astype(v.dtype), v)


def _for_each(bias: jax.Array, batch: int) -> jax.Array:
  """`[S, h, Q, K]` to `[B, h, Q, K]`, as a product: its gradient is then one too, faster on CPUs than a sum over B."""
  each = jnp.einsum("b,shqk->sbhqk", jnp.ones(batch // len(bias), bias.dtype), bias)
  return each.reshape(batch, *bias.shape[1:])
