"""The dense mixture of Jacobs et al. 1991 as a router."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts.layer import MoE
from moe.routing import RouterConfig, Site
from moe.routing.methods.adaptive_mixture import competitive_loss, cooperative_loss, mixture_loss, posterior
from tests.routing.naive import make, of_sequences, random_tokens, route


@pytest.mark.parametrize("options", [{}, {"capacity_factor": 4.0}], ids=["dropless", "slots"])
def test_every_token_goes_to_every_expert_with_its_probability(options):
  router, tokens = make("adaptive_mixture", **options), random_tokens(2, 8)
  expected = jax.nn.softmax(tokens @ router.kernel[...])
  for training in (True, False):
    output = route(router, tokens, training=training)
    np.testing.assert_allclose(of_sequences(output.routing, 2, 8), expected, rtol=1e-5)
    assert float(output.metrics["capacity_factor"]) == 4.0
    assert float(output.metrics["dropped"]) == 0.0


def test_the_layer_is_the_mixture_of_its_experts():
  layer = MoE(6, 3, 10, "adaptive_mixture", form="relu", rngs=nnx.Rngs(0))
  x = random_tokens(2, 5, d_model=6)
  y = nnx.jit(lambda layer: layer(x, segments=jnp.ones((2, 5), jnp.int32), training=True)[0])(layer)
  gates, experts = jax.nn.softmax(x @ layer.router.kernel[...]), layer.experts
  hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, experts.up[...]))
  expected = jnp.einsum("bte,btef,edf->btd", gates, hidden, experts.down[...])
  np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_slots_for_fewer_than_all_tokens_are_refused():
  choice = RouterConfig.choices["adaptive_mixture"]
  for options in ({"capacity_factor": 3.0}, {"capacity_factor": 4.0, "eval_capacity_factor": 3.0}):
    with pytest.raises(ConfigError, match=r"capacity_factor = 3\.0: every token goes to all 4 experts"):
      choice(**options).check(Site(8, 4), batch=2, length=8)


# The three losses, of two experts with two outputs each.

OUTPUTS = jnp.array([[1.0, 0.0], [0.0, 3.0]])
TARGET = jnp.array([0.0, 1.0])
LOGITS = jnp.log(jnp.array([0.25, 0.75]))
PROBS = jax.nn.softmax(LOGITS)


def test_the_three_losses_have_the_values_of_their_equations():
  # The mixture is (0.25, 2.25); squared errors of the experts are 2 and 4.
  assert float(cooperative_loss(PROBS, OUTPUTS, TARGET)) == pytest.approx(0.25**2 + 1.25**2)
  assert float(competitive_loss(PROBS, OUTPUTS, TARGET)) == pytest.approx(0.25 * 2 + 0.75 * 4)
  expected = -np.log(0.25 * np.exp(-1) + 0.75 * np.exp(-2))
  assert float(mixture_loss(PROBS, OUTPUTS, TARGET)) == pytest.approx(expected)


def test_the_posterior_sums_to_one_and_weighs_the_gate_by_the_fit():
  found = posterior(PROBS, OUTPUTS, TARGET)
  assert float(found.sum()) == pytest.approx(1.0)
  assert float(found[0] / found[1]) == pytest.approx(0.25 / 0.75 * np.exp(1), rel=1e-6)
  np.testing.assert_allclose(posterior(PROBS, jnp.ones((2, 2)), TARGET), PROBS, rtol=1e-6)


def test_gradients_of_experts_are_weighed_by_the_gate_alone_or_by_the_posterior():
  left = TARGET - OUTPUTS
  competitive = jax.grad(competitive_loss, 1)(PROBS, OUTPUTS, TARGET)
  np.testing.assert_allclose(competitive, -2 * PROBS[:, None] * left, rtol=1e-6)
  mixture = jax.grad(mixture_loss, 1)(PROBS, OUTPUTS, TARGET)
  np.testing.assert_allclose(mixture, -posterior(PROBS, OUTPUTS, TARGET)[:, None] * left, rtol=1e-6)
  cooperative = jax.grad(cooperative_loss, 1)(PROBS, OUTPUTS, TARGET)
  np.testing.assert_allclose(cooperative, -2 * PROBS[:, None] * (TARGET - PROBS @ OUTPUTS), rtol=1e-6)


def test_the_gate_moves_towards_the_posterior():
  gradient = jax.grad(lambda logits: mixture_loss(jax.nn.softmax(logits), OUTPUTS, TARGET))(LOGITS)
  np.testing.assert_allclose(gradient, PROBS - posterior(PROBS, OUTPUTS, TARGET), rtol=1e-5)


def test_with_one_expert_the_losses_are_its_squared_error_of_which_the_mixture_has_half():
  one, output = jnp.ones(1), OUTPUTS[:1]
  assert float(mixture_loss(one, output, TARGET)) == pytest.approx(2 / 2)
  for loss in (cooperative_loss, competitive_loss):
    assert float(loss(one, output, TARGET)) == pytest.approx(2)


def test_the_mixture_is_finite_where_every_expert_is_far_away():
  value, gradient = jax.value_and_grad(mixture_loss, 1)(PROBS, 100 * OUTPUTS, TARGET)
  assert np.isfinite(value) and np.isfinite(gradient).all()
