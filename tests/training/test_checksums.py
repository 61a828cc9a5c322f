"""Checksums of arrays, which a flipped bit changes."""

import jax.numpy as jnp
import numpy as np
import optax

from moe.training import checksums as module
from moe.training.checksums import checksums


def test_checksums_detect_any_single_bit_and_the_order_of_leaves():
  tree = {"a": jnp.arange(4.0), "b": jnp.arange(4)}
  sums, finite = checksums(tree)
  assert finite
  other, _ = checksums(tree | {"a": tree["a"].at[2].set(np.nextafter(np.float32(2), np.float32(3)))})
  assert sums.tolist() != other.tolist()
  assert checksums({"a": tree["b"], "b": tree["a"]})[0].tolist() == sums[::-1].tolist()
  assert not checksums(optax.tree.scale(jnp.inf, tree))[1]


def test_checksums_are_the_same_compiled_and_on_the_host():
  tree = [jnp.linspace(-1, 1, 1000).reshape(10, 100), jnp.arange(7), jnp.ones((3, 3), jnp.bfloat16), jnp.float32(2)]
  sums, finite = module._checksums(tree)
  assert sums.tolist() == checksums(tree)[0].tolist() and finite == checksums(tree)[1]
