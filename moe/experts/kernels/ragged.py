"""The experts of a dropless routing: each one computes as many tokens as it was assigned.

The products cost what the actual assignments do, not the arrays' size: a router that may give a token every expert, and
gives it two, costs two. Only the arguments are saved for the backward pass, which recomputes the first product: the
`[A, f]` activations would be the largest arrays of all.
"""

import functools
from collections.abc import Callable, Sequence

import jax

from moe.experts.kernels import blocks as ragged_blocks
from moe.experts.kernels import pallas_gpu as grouped_gpu
from moe.experts.kernels import pallas_hopper as grouped_hopper
from moe.experts.kernels import pallas_tpu as grouped_tpu
from moe.experts.kernels import tiles as ragged_tiles
from moe.experts.kernels.dropout import HiddenDropout
from moe.experts.kernels.rows import rows_at_once


def ragged_feed_forward(
  activation: Callable,
  tokens: jax.Array,
  rows: jax.Array,
  weight: jax.Array,
  sizes: jax.Array,
  ups: list[jax.Array],
  down: jax.Array,
  biases: Sequence[jax.Array] = (),
  dropout: HiddenDropout | None = None,
) -> jax.Array:
  """`out[rows[i]] += weight[i] * ffn_e(i)(tokens[rows[i]])`; the first `sizes[0]` i belong to expert 0, and so on.

  On several TPUs or GPUs it must run inside `jax.shard_map` over all axes of the mesh: compilers do not shard kernels.

  Args:
    activation: applied to the products with `ups`.
    tokens: `[N, d]`.
    rows: int32 `[A]`, sorted by expert; entries beyond the last expert's run are ignored.
    weight: float32 `[A]`.
    sizes: int32 `[E]`, their sum at most A.
    ups: one or two `[E, d, f]`.
    down: `[E, d, f]`, used transposed.
    biases: added to the products with `ups`, `[E, f]` each; none by default.
    dropout: of the hidden units, with a name for each of the A rows.

  Returns:
    `[N, d]` in the dtype of `tokens`; sums are float32.
  """
  return _feed_forward(activation, *_varying_alike((tokens, rows, weight, sizes, ups, down, list(biases), dropout)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _feed_forward(activation, *arguments):
  return _by_platform(ragged_tiles.forward, ragged_blocks.forward, activation, arguments)


def _forward(activation, *arguments):
  return _feed_forward(activation, *arguments), arguments


def _backward(activation, arguments, gradient):
  *arrays, dropout = arguments
  gradients = _by_platform(ragged_tiles.backward, ragged_blocks.backward, activation, (*arrays, gradient, dropout))
  d_tokens, d_weight, *d_weights = gradients
  return d_tokens, None, d_weight, None, *d_weights, None


_feed_forward.defvjp(_forward, _backward)


def _by_platform(tiles: Callable, blocks: Callable, activation: Callable, arguments: tuple):
  """`tiles` with the platform's kernels if it has any for these shapes, else `blocks`."""
  tokens, rows, _, _, _, down, *_ = arguments
  kernels = {"tpu": grouped_tpu.KERNELS}
  if grouped_gpu.takes(rows_at_once(len(rows), len(tokens), len(down)), down.shape):
    hopper = grouped_hopper.takes(tokens.dtype, down.shape, grouped_gpu.compute_capability())
    kernels["cuda"] = grouped_hopper.KERNELS if hopper else grouped_gpu.KERNELS
  branches = {name: functools.partial(tiles, kernel, activation) for name, kernel in kernels.items()}
  return jax.lax.platform_dependent(*arguments, **branches, default=functools.partial(blocks, activation))


def _varying_alike(arrays: tuple) -> tuple:
  """Inside `jax.shard_map`, marks all arrays as varying over the mesh axes that any of them varies over.

  The gradient of a replicated array is then summed over devices, and loops can start from zeros.
  """

  def axes(array):
    return jax.typeof(array).manual_axis_type.varying

  every = frozenset().union(*map(axes, jax.tree.leaves(arrays)))
  return jax.tree.map(lambda a: jax.lax.pcast(a, tuple(sorted(every - axes(a))), to="varying"), arrays)
