import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.nn import attention_kernels
from moe.nn.attention import Attention, segment_mask

D, HEADS, WIDTH = 12, 3, 5


def make(dtype=jnp.float32):
  return Attention(D, HEADS, WIDTH, dtype, rngs=nnx.Rngs(0))


def tokens(*shape, seed=1):
  return jax.random.normal(jax.random.key(seed), (*shape, D))


def naive(attention, x, memory, mask, bias):
  """One query and one head at a time. `mask [B, Q, K]`, `bias [h, Q, K]`."""
  out = np.zeros(x.shape)
  for b, q in np.ndindex(*x.shape[:2]):
    heads = []
    for h in range(HEADS):
      block = slice(h * WIDTH, (h + 1) * WIDTH)
      query = x[b, q] @ attention.query[...][:, block]
      logits = memory[b] @ attention.key[...][:, block] @ query + bias[h, q]
      weights = np.where(mask[b, q], np.exp(logits), 0)
      heads.append(weights / weights.sum() @ (memory[b] @ attention.value[...][:, block]))
    out[b, q] = np.concatenate(heads) @ attention.out[...]
  return out


def test_equals_one_query_and_one_head_at_a_time_without_scaling():
  attention, x, memory = make(), tokens(2, 4), tokens(2, 6, seed=2)
  mask = np.array(jax.random.bernoulli(jax.random.key(3), 0.6, (2, 4, 6)))
  mask[..., 0] = True
  bias = jax.random.normal(jax.random.key(4), (HEADS, 4, 6))
  found = attention(x, memory, mask[:, None], bias[None])
  np.testing.assert_allclose(found, naive(attention, x, memory, mask, bias), rtol=1e-4, atol=1e-5)


def test_masked_keys_change_no_bit():
  attention, x, memory = make(), tokens(2, 4), tokens(2, 6, seed=2)
  mask = jnp.arange(6) < 4
  changed = memory.at[:, 4:].set(1e3 * tokens(2, 2, seed=5))
  np.testing.assert_array_equal(attention(x, memory, mask), attention(x, changed, mask))


def test_segment_mask_separates_examples_and_padding():
  segments = jnp.array([[1, 1, 2, 2, 0, 0]])
  expected = np.zeros((6, 6), bool)
  for first in (0, 2, 4):
    expected[first : first + 2, first : first + 2] = True
  np.testing.assert_array_equal(segment_mask(segments, segments)[0, 0], expected)
  np.testing.assert_array_equal(segment_mask(segments, segments, causal=True)[0, 0], np.tril(expected))


def test_segment_mask_between_targets_and_inputs():
  mask = segment_mask(jnp.array([[1, 2, 2, 0]]), jnp.array([[1, 1, 2]]))
  np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]])


def test_query_that_may_see_nothing_gives_finite_output_and_gradient():
  attention = make()
  value, gradient = jax.value_and_grad(lambda x: attention(x, x, jnp.zeros((3, 3), bool)).sum())(tokens(1, 3))
  assert jnp.isfinite(value)
  assert jnp.isfinite(gradient).all()


def test_steps_with_a_cache_equal_causal_attention():
  attention, x = make(), tokens(2, 5)
  bias = jax.random.normal(jax.random.key(4), (1, HEADS, 5, 5))
  whole = attention(x, x, jnp.tri(5, dtype=bool), bias)
  cache = attention.init_cache(2, 5)
  for t in range(5):
    y, cache = attention.step(x[:, t : t + 1], cache, jnp.int32(t), jnp.arange(5) <= t, bias[:, :, t : t + 1])
    np.testing.assert_allclose(y[:, 0], whole[:, t], rtol=1e-5, atol=1e-6)


def test_logits_and_softmax_are_float32_under_bfloat16():
  """Differences of 1 between logits near 1000 vanish in bfloat16, whose spacing there is 4."""
  attention = make(jnp.bfloat16)
  keys, values = attention.project(tokens(1, 2))
  bias = jnp.array([1000.0, 1001.0])
  every_head = jnp.broadcast_to(bias, (1, values.shape[1], 1, 2))
  uniform = attention.attend(tokens(1, 1), 0 * keys, values, jnp.ones(2, bool), every_head)
  mixed = jnp.einsum("k,hkw->hw", jax.nn.softmax(bias), values[0].astype(jnp.float32))
  expected = mixed.reshape(-1) @ attention.out[...]
  assert uniform.dtype == jnp.bfloat16
  np.testing.assert_allclose(uniform[0, 0].astype(jnp.float32), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("name", "std"), [("query", 1 / np.sqrt(64 * 32)), ("key", 1 / 8), ("out", 1 / np.sqrt(256))])
def test_initial_standard_deviations_are_those_of_t5(name, std):
  attention = Attention(64, 8, 32, jnp.float32, rngs=nnx.Rngs(0))
  assert abs(getattr(attention, name)[...].std() / std - 1) < 0.03


def test_dropout_acts_on_attention_weights_only_with_a_key():
  attention, x, mask = make(), tokens(1, 4), jnp.ones(4, bool)
  plain = attention(x, x, mask)
  np.testing.assert_array_equal(attention(x, x, mask, rate=0.5), plain)
  assert (attention(x, x, mask, rate=0.5, key=jax.random.key(0)) != plain).any()


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_where_kernels_may_run_values_and_gradients_are_those_of_the_logits_written_out(monkeypatch, rate):
  attention, x = make(), tokens(2, 128)
  mask = segment_mask(jnp.ones((2, 128)), jnp.ones((2, 128)), causal=True)
  bias = jax.random.normal(jax.random.key(4), (1, HEADS, 128, 128))

  def loss(x, bias):
    return jnp.sum(jnp.sin(attention(x, x, mask, bias, rate=rate, key=jax.random.key(5))))

  found = jax.value_and_grad(loss, (0, 1))(x, bias)
  monkeypatch.setattr(attention_kernels, "takes", lambda *_: False)
  expected = jax.value_and_grad(loss, (0, 1))(x, bias)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
