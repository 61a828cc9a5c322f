"""Experts on as many tokens as each was given: the feed-forward networks of a dropless routing.

The cost is that of the assignments there are, not of those that the arrays have room for: a router that may give a
token every expert, and gives it two, costs two.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

_BLOCK = 256


def ragged_feed_forward(
  activation: Callable,
  tokens: jax.Array,
  rows: jax.Array,
  weight: jax.Array,
  sizes: jax.Array,
  ups: list[jax.Array],
  down: jax.Array,
) -> jax.Array:
  """`out[rows[i]] += weight[i] * ffn_e(i)(tokens[rows[i]])`; the first `sizes[0]` i belong to expert 0, and so on.

  Args:
    activation: of the products with `ups`.
    tokens: `[N, d]`.
    rows: int32 `[A]`, sorted by expert; what lies beyond the last expert's run is not looked at.
    weight: float32 `[A]`.
    sizes: int32 `[E]`, their sum at most A.
    ups: one or two `[E, d, f]`.
    down: `[E, d, f]`, used transposed.

  Returns:
    `[N, d]`, of the dtype of `tokens`; sums are float32.
  """
  arguments = (tokens, rows, weight, sizes, ups, down)
  return jax.lax.platform_dependent(
    *arguments, tpu=functools.partial(_grouped, activation), default=functools.partial(_blocked, activation)
  )


def _grouped(activation, tokens, rows, weight, sizes, ups, down):
  """By `ragged_dot`, a kernel on TPUs (elsewhere it is a masked dense product over all experts)."""
  real = (jnp.arange(len(rows)) < sizes.sum())[:, None]
  x = tokens[rows]
  hidden = activation(*(jax.lax.ragged_dot(x, up, sizes) for up in ups))
  y = jax.lax.ragged_dot(hidden, down.swapaxes(1, 2), sizes)
  weighted = jnp.where(real, y * weight[:, None], 0)
  return jnp.zeros(tokens.shape, jnp.float32).at[rows].add(weighted).astype(tokens.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked(activation, tokens, rows, weight, sizes, ups, down):
  """By a loop over blocks of one expert's rows, as many as there are; the backward pass computes each block anew."""
  blocks = _Blocks(rows, weight, sizes)

  def add_block(index, out):
    expert, _, row, weight = blocks[index]
    x = tokens.at[row].get(mode="fill", fill_value=0)
    hidden = activation(*(x @ up[expert] for up in ups))
    y = jnp.einsum("bf,df->bd", hidden, down[expert], preferred_element_type=jnp.float32)
    return out.at[row].add(weight[:, None] * y, mode="drop")

  out = jax.lax.fori_loop(0, blocks.count, add_block, jnp.zeros(tokens.shape, jnp.float32))
  return out.astype(tokens.dtype)


def _forward(activation, *arguments):
  return _blocked(activation, *arguments), arguments


def _backward(activation, arguments, gradient):
  tokens, rows, weight, sizes, ups, down = arguments
  blocks, width = _Blocks(rows, weight, sizes), len(ups)

  def add_block(index, sums):
    d_tokens, d_weight, d_ups, d_down = sums
    expert, place, row, weight = blocks[index]
    x, g = (a.at[row].get(mode="fill", fill_value=0) for a in (tokens, gradient))
    hidden, pull_back = jax.vjp(activation, *(x @ up[expert] for up in ups))
    d_hidden = g @ down[expert]
    d_weight = d_weight.at[place].set((d_hidden * hidden).sum(-1, dtype=jnp.float32), mode="drop")
    weighted = weight[:, None].astype(g.dtype)
    before = pull_back(d_hidden * weighted)
    d_down = d_down.at[expert].add(_outer(g * weighted, hidden))
    d_ups = [sum_.at[expert].add(_outer(x, b)) for sum_, b in zip(d_ups, before, strict=True)]
    d_x = sum(jnp.einsum("bf,df->bd", b, up[expert]) for b, up in zip(before, ups, strict=True))
    return d_tokens.at[row].add(d_x.astype(jnp.float32), mode="drop"), d_weight, d_ups, d_down

  zeros = [jnp.zeros(a.shape, jnp.float32) for a in (tokens, weight, *ups, down)]
  start = (zeros[0], zeros[1], zeros[2 : 2 + width], zeros[-1])
  d_tokens, d_weight, d_ups, d_down = jax.lax.fori_loop(0, blocks.count, add_block, start)
  d_ups = [d.astype(up.dtype) for d, up in zip(d_ups, ups, strict=True)]
  return d_tokens.astype(tokens.dtype), None, d_weight, None, d_ups, d_down.astype(down.dtype)


_blocked.defvjp(_forward, _backward)


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
  """float32 `a^T b` of `[block, d]` and `[block, f]`."""
  return jnp.einsum("bd,bf->df", a, b, preferred_element_type=jnp.float32)


class _Blocks:
  """Every expert's run cut into blocks, its last one padded.

  Attributes:
    count: int32 scalar, how many there are: known only when the program runs.
  """

  def __init__(self, rows: jax.Array, weight: jax.Array, sizes: jax.Array):
    self.rows, self.weight = rows, weight
    self._run_ends, self._ends = jnp.cumsum(sizes), jnp.cumsum(-(-sizes // _BLOCK))
    self._first = self._ends - -(-sizes // _BLOCK)
    self._run_starts = self._run_ends - sizes
    self.count = self._ends[-1]

  def __getitem__(self, index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A block's expert, its places in `rows`, the rows themselves and their weights; padding is out of range."""
    expert = jnp.searchsorted(self._ends, index, side="right")
    place = self._run_starts[expert] + (index - self._first[expert]) * _BLOCK + jnp.arange(_BLOCK)
    place = jnp.where(place < self._run_ends[expert], place, len(self.rows))
    row = self.rows.at[place].get(mode="fill", fill_value=jnp.iinfo(jnp.int32).max)
    return expert, place, row, self.weight.at[place].get(mode="fill", fill_value=0)
