"""Noisy top-k gating: noise that is learnt, a softmax after the choice, and the two losses of Shazeer et al. 2017."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from moe.config import ConfigError, build
from moe.routing import RouterConfig, Site
from moe.routing.losses import load_loss
from moe.routing.methods.noisy_top_k import sparse_gates
from moe.routing.top_k import top_choices
from tests.routing.differences import assert_gradient_is_the_difference_quotient
from tests.routing.naive import make, random_tokens, route, token_weights

KEY = jax.random.key(0)


def noisy(**options):
  """A router whose noise has learnt something too."""
  router = make("noisy_top_k", **options)
  router.noise_kernel[...] = 0.5 * jax.random.normal(jax.random.key(1), router.noise_kernel.shape)
  return router


def test_it_begins_with_little_signal_and_nearly_the_same_noise_for_all():
  router = build(RouterConfig, {"name": "noisy_top_k"}).make(Site(8, 4), nnx.Rngs(0))
  output = route(router, random_tokens(8, 128), training=True, key=KEY)
  assert float(output.metrics["load_cv"]) < 0.1
  logits = router.logits(random_tokens(8, 128), KEY)
  np.testing.assert_allclose(logits.noise_std, np.log(2), rtol=0.25)  # softplus of nearly 0
  assert float(logits.clean.std()) < 0.1 * float(logits.noisy.std())
  assert not np.allclose(router.kernel[...], router.noise_kernel[...])


def test_noise_that_has_all_but_gone_leaves_finite_gradients():
  router, tokens = noisy(), random_tokens(2, 16)
  router.noise_kernel[...] = -300 * jnp.ones_like(router.noise_kernel[...])
  tokens = jnp.abs(tokens)  # so that every noise logit is far below 0 and its softplus underflows
  assert float(jax.nn.softplus(tokens @ router.noise_kernel[...]).min()) == 0
  graph, params = nnx.split(router)

  def loss(params, tokens):
    output = route(nnx.merge(graph, params), tokens, training=True, key=KEY)
    return output.auxiliary_loss + output.routing.weight.sum()

  gradients = jax.grad(loss, argnums=(0, 1))(params, tokens)
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  np.testing.assert_allclose(router.logits(tokens, KEY).noise_std, 0.01, rtol=1e-6)


def test_noise_has_the_standard_deviation_that_was_learnt_for_each_token_and_expert():
  router, tokens = noisy(), random_tokens(1, 3)
  draws = jax.vmap(lambda key: router.logits(tokens, key).noisy)(jax.random.split(KEY, 20_000))
  expected = np.log1p(np.exp(tokens @ router.noise_kernel[...]))
  np.testing.assert_allclose(draws.std(0), expected, rtol=0.03)
  np.testing.assert_allclose(draws.mean(0), tokens @ router.kernel[...], atol=0.06)


def test_gates_are_the_softmax_of_the_chosen_noisy_logits_alone():
  logits = jnp.asarray(3 * np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
  choices, gates = top_choices(jax.nn.softmax(logits), 3, renormalize=True)
  highest, expected = jax.lax.top_k(logits, 3)
  np.testing.assert_array_equal(choices, expected)
  np.testing.assert_allclose(gates, jax.nn.softmax(highest), rtol=1e-5)


def test_losses_are_those_of_the_gates_used_and_of_the_noise_drawn():
  router, tokens = noisy(), random_tokens(2, 16)
  output = route(router, tokens, training=True, key=KEY)
  mass = np.nansum(token_weights(output.routing, 32, 4)[0], axis=0)
  assert float(output.losses["importance"]) == pytest.approx(mass.var() / mass.mean() ** 2, rel=1e-4)
  assert float(output.losses["load"]) > 0
  expected = 0.1 * float(output.losses["importance"]) + 0.1 * float(output.losses["load"])
  assert float(output.auxiliary_loss) == pytest.approx(expected, rel=1e-5)


def test_the_load_of_experts_with_noise_of_their_own_has_the_closed_form_of_one_choice_of_two():
  # With k = 1 of 2 experts the bar of one is the noisy logit of the other.
  clean, drawn = np.float32([[[0.2, -0.1], [0.5, 0.3]]]), np.float32([[[0.7, 0.1], [-0.2, 0.9]]])
  std = np.float32([[[0.5, 2.0], [1.0, 0.25]]])
  chance = norm.cdf((clean - drawn[..., ::-1]) / std)
  load = chance.sum((0, 1))
  found = load_loss(clean, drawn, 1, std, jnp.ones((1, 2), bool))
  assert float(found) == pytest.approx(float(load.var() / load.mean() ** 2), rel=1e-5)


def test_evaluation_has_no_noise_and_no_load():
  router, tokens = noisy(), random_tokens(2, 16)
  output = route(router, tokens)
  assert output.losses.keys() == {"balance", "z", "importance"}
  choices = jax.lax.top_k(tokens @ router.kernel[...], 2)[1].reshape(32, 2)
  found = np.argwhere(~np.isnan(token_weights(output.routing, 32, 4)[0]))
  np.testing.assert_array_equal(found[:, 1].reshape(32, 2), np.sort(choices, axis=-1))


@pytest.mark.parametrize("options", [{}, {"capacity_factor": 1.5, "scores": "sigmoid", "balance_loss": 0.1}])
def test_both_kernels_have_the_gradient_of_finite_differences(options):
  assert_gradient_is_the_difference_quotient(noisy(**options), random_tokens(2, 8), step=1e-3)


def test_sparse_gates_are_zero_for_experts_not_chosen():
  gates = sparse_gates(jnp.array([[2, 0], [1, 2]]), jnp.array([[0.7, 0.3], [0.6, 0.4]]), 3)
  np.testing.assert_allclose(gates, [[0.3, 0, 0.7], [0, 0.6, 0.4]])


def test_training_without_a_key_and_every_expert_at_once_are_refused():
  with pytest.raises(
    ValueError, match=r"RouterInput\.key = None: expected a key, as NoisyTopK draws random numbers in training"
  ):
    route(noisy(), random_tokens(1, 8), training=True)
  choice = RouterConfig.choices["noisy_top_k"]
  with pytest.raises(ConfigError, match=r"load_loss = 0\.1: expected 0 unless top_k < 4 experts"):
    choice(top_k=4).check(Site(8, 4), batch=1, length=16)
