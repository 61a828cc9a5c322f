"""Dropout inside the experts: its mean, its gradient, and that a unit's fate hangs on token, expert and key alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts.kernels import blocks, pallas_gpu, pallas_tpu, tiles
from moe.experts.kernels.dropout import HiddenDropout, keeps, with_dropout
from moe.experts.kernels.ragged import ragged_feed_forward
from moe.experts.kernels.recompute import activate_and_project
from moe.experts.layer import MoE
from tests.experts.ragged_cases import EXPERTS, HIDDEN, assert_close, cotangent_of, problem

WIDTH, RATE = 6, 0.4
X = jax.random.normal(jax.random.key(1), (2, 8, WIDTH))


def layer(router, **options) -> MoE:
  return MoE(WIDTH, 4, 10, router, rngs=nnx.Rngs(0), **options)


@functools.partial(nnx.jit, static_argnames="training")
def apply(layer, key, training=True):
  return layer(X, training=training, key=key)[0]


def dropout_of(names) -> HiddenDropout:
  return HiddenDropout(jnp.array([5, 7], jnp.uint32), 0, names, RATE)


def test_units_are_dropped_at_the_rate_and_independently_of_each_other():
  kept = np.asarray(keeps(dropout_of(jnp.arange(1000)), 200), np.float64)
  assert kept.mean() == pytest.approx(1 - RATE, abs=0.004)  # four standard errors
  assert np.abs(kept.mean(0) - (1 - RATE)).max() < 5 * (RATE * (1 - RATE) / 1000) ** 0.5
  correlation = np.corrcoef(kept[:, :50].T) - np.eye(50)
  assert np.abs(correlation).max() < 5 / 1000**0.5
  assert np.abs(np.corrcoef(kept[:50]) - np.eye(50)).max() < 5 / 200**0.5


def test_another_key_and_another_part_of_the_units_are_others():
  names = jnp.arange(64)
  whole = keeps(dropout_of(names), 20)
  np.testing.assert_array_equal(keeps(HiddenDropout(jnp.array([5, 7], jnp.uint32), 12, names, RATE), 8), whole[:, 12:])
  other = keeps(HiddenDropout(jnp.array([5, 8], jnp.uint32), 0, names, RATE), 20)
  assert 0.4 < (other != whole).mean() < 0.56  # 2 * 0.4 * 0.6 of independent ones


@pytest.mark.parametrize("router", ["expert_choice", "dropless", "soft_moe"])
def test_the_mean_over_keys_is_the_layer_without_dropout(router):
  plain, dropped = layer(router, shared_experts=1), layer(router, shared_experts=1, dropout=RATE)
  graph, state = nnx.split(dropped)
  draw = jax.jit(jax.vmap(lambda key: nnx.merge(graph, state)(X, training=True, key=key)[0]))
  outputs = draw(jax.random.split(jax.random.key(3), 2000))
  error = outputs.std(0) / 2000**0.5
  assert (outputs.std(0) > 0).all()
  assert np.abs((outputs.mean(0) - apply(plain, jax.random.key(0))) / error).max() < 5


@pytest.mark.parametrize("router", ["expert_choice", "dropless", "soft_moe"])
def test_rate_0_evaluation_and_a_missing_key_are_without_dropout_bit_for_bit(router):
  plain, dropped, key = (
    layer(router, shared_experts=1),
    layer(router, shared_experts=1, dropout=RATE),
    jax.random.key(0),
  )
  np.testing.assert_array_equal(apply(layer(router, shared_experts=1, dropout=0.0), key), apply(plain, key))
  np.testing.assert_array_equal(apply(dropped, None, training=False), apply(plain, None, training=False))
  np.testing.assert_array_equal(apply(dropped, None), apply(plain, None))


def test_slots_and_runs_of_the_same_assignments_drop_the_same_units():
  by_slots = layer({"name": "token_choice", "capacity_factor": 4.0}, dropout=RATE)
  by_runs = layer({"name": "token_choice", "capacity_factor": None}, dropout=RATE)
  key = jax.random.key(2)
  np.testing.assert_allclose(apply(by_slots, key), apply(by_runs, key), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_slots_is_that_of_the_same_masks():
  keys = jax.random.split(jax.random.key(0), 4)
  before = [jax.random.normal(key, (3, 5, HIDDEN)) for key in keys[:2]]
  down, cotangent = (jax.random.normal(key, shape) for key, shape in zip(keys[2:], [(3, 7, HIDDEN), (3, 5, 7)]))
  dropout = dropout_of(jnp.arange(15).reshape(3, 5))
  mask = keeps(dropout, HIDDEN) / (1 - RATE)

  def gated(gate, up):
    return jax.nn.gelu(gate) * up

  def plain(before, down):
    return jnp.einsum("erf,edf->erd", gated(*before) * mask, down)

  expected, pull_back = jax.vjp(plain, before, down)
  found, actual = jax.vjp(lambda before, down: activate_and_project(gated, before, down, dropout), before, down)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (found, actual(cotangent)),
    (expected, pull_back(cotangent)),
  )


@pytest.mark.parametrize("implementation", ["blocks", "tpu", "gpu"])
def test_the_gradient_of_runs_is_that_of_the_same_masks(implementation, monkeypatch):
  from jax.experimental import pallas as pl

  monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
  arguments = problem((63, 0, 70), gated=False)
  tokens, rows, weight, sizes, *weights = arguments
  names, cotangent = jnp.arange(len(rows)) * 3, cotangent_of(arguments)
  mask = keeps(dropout_of(names), HIDDEN) / (1 - RATE)
  expert = np.repeat(np.arange(EXPERTS), np.asarray(sizes))
  used = len(expert)

  def plain(tokens, weight, ups, down, biases):
    before = jnp.einsum("ad,adf->af", tokens[rows[:used]], ups[0][expert]) + biases[0][expert]
    hidden = jax.nn.gelu(before) * mask[:used]
    y = weight[:used, None] * jnp.einsum("af,adf->ad", hidden, down[expert])
    return jnp.zeros_like(tokens).at[rows[:used]].add(y)

  out, pull_back = jax.vjp(plain, tokens, weight, *weights)
  kernels = {"tpu": [pallas_tpu.KERNELS], "gpu": [pallas_gpu.KERNELS]}.get(implementation, [])
  module = tiles if kernels else blocks
  dropout = dropout_of(names)
  found = module.forward(*kernels, jax.nn.gelu, *arguments, dropout)
  assert_close(
    (found, module.backward(*kernels, jax.nn.gelu, *arguments, cotangent, dropout)), (out, pull_back(cotangent))
  )
  if implementation == "blocks":
    whole = jax.vjp(
      lambda t, w, *ws: ragged_feed_forward(jax.nn.gelu, t, rows, w, sizes, *ws, dropout), tokens, weight, *weights
    )
    assert_close((whole[0], whole[1](cotangent)), (out, pull_back(cotangent)))


def test_without_dropout_the_activation_is_itself():
  assert with_dropout(jax.nn.gelu, None) is jax.nn.gelu


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_that_drop_nothing_sensible_are_refused(rate):
  with pytest.raises(ConfigError, match=f"dropout = {rate}: expected at least 0 and less than 1"):
    layer("glam", dropout=rate)
