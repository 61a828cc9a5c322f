"""Ragged experts within `shard_map` on two devices: each its own rows and sizes, the experts' matrices the same."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from moe.experts.kernels.ragged import ragged_feed_forward
from moe.nn.activations import ACTIVATIONS
from tests.experts.ragged_cases import assert_close, cotangent_of, expected, problem


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
def test_two_devices_share_the_rows_and_agree_with_one(check):
  """With and without the checks of what varies over the mesh."""
  mesh = jax.make_mesh((2,), ("expert",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  shares = [problem(sizes, gated=True) for sizes in ((0, 240, 320), (300, 0, 260))]
  weights = shares[0][4:]
  shares = [(*share[:4], *weights) for share in shares]
  stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(share[:4] for share in shares))
  split, same = PartitionSpec("expert"), PartitionSpec()

  def on_device(*arguments):
    return ragged_feed_forward(ACTIVATIONS["swiglu"], *arguments)

  mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(split,) * 4 + (same,) * 3, out_specs=split, check_vma=check)
  tokens, rows, weight, sizes = stacked

  @jax.jit
  def both(tokens, weight, *weights):
    out, pull_back = jax.vjp(lambda t, w, *ws: mapped(t, rows, w, sizes, *ws), tokens, weight, *weights)
    return out, pull_back(jnp.concatenate([cotangent_of(share) for share in shares]))

  references = [expected(ACTIVATIONS["swiglu"], share, cotangent_of(share)) for share in shares]
  out, (d_tokens, d_weight, *d_weights) = both(tokens, weight, *weights)
  assert_close(out, jnp.concatenate([r[0] for r in references]))
  assert_close(d_tokens, jnp.concatenate([r[1][0] for r in references]))
  assert_close(d_weight, jnp.concatenate([r[1][1] for r in references]))
  assert_close(d_weights, jax.tree.map(jnp.add, *(list(r[1][2:]) for r in references)))
