"""Switch against Hugging Face's layer: dispatch exactly, gates and losses to 1e-5.

No definitional difference had to be allowed for: theirs, too, counts capacity per sequence by position, takes the
balance loss of each sequence before anything is dropped, and averages it over sequences of equal length.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import Groups
from tests.routing.naive import inputs_of, make, token_weights, with_kernel


@pytest.fixture(scope="module")
def reference(parity_dir):
  return np.load(parity_dir / "hf_switch_mlp_relu.npz")


@pytest.fixture(scope="module")
def router(reference):
  # 6 slots for sequences of 32 and 4 experts: 0.75 * 32 / 4.
  router = make("switch", d_model=16, capacity_factor=0.75, eval_capacity_factor=0.75, jitter=0.0)
  router.kernel[...] = jnp.array(reference["w_router.classifier.weight"].T)
  return router


@pytest.fixture(scope="module")
def output(reference, router):
  return router(inputs_of(jnp.array(reference["in_x"]), Groups(32)), training=True)


def test_the_same_tokens_are_kept_by_the_same_experts(reference, output):
  weights = token_weights(output.routing, 32, 4)
  np.testing.assert_array_equal(~np.isnan(weights), reference["out_dispatch"] == 1)
  assert 0 < reference["out_kept"].sum() < 64, "the example drops some tokens, not all"


def test_the_gates_are_the_same(reference, output):
  gate = np.nansum(token_weights(output.routing, 32, 4), -1)
  np.testing.assert_allclose(gate, reference["out_prob"][..., 0] * reference["out_kept"], atol=1e-5)


def test_the_losses_are_the_same(reference, output):
  assert float(output.losses["balance"]) == pytest.approx(float(reference["out_aux_loss"]), abs=1e-5)
  assert float(output.losses["z"]) == pytest.approx(float(reference["out_z_loss"]), abs=1e-5)


def test_the_gradient_of_the_losses_is_the_same(reference, router):
  def losses(x):
    found = router(inputs_of(x, Groups(32)), training=True).losses
    return found["balance"] + found["z"]

  gradient = jax.grad(losses)(jnp.array(reference["in_x"]))
  np.testing.assert_allclose(gradient, reference["grad_x_of_z_plus_aux"], atol=1e-5)


def test_the_gradient_of_the_router_is_the_same(reference, router):
  """Through the gates alone: the layer's output is gate * expert(x), with experts that are theirs."""
  x, kept = jnp.array(reference["in_x"]), reference["out_dispatch"]
  experts = [{m: reference[f"w_experts.expert_{e}.{m}.weight"] for m in ("wi", "wo")} for e in range(4)]
  outputs = jnp.stack([jax.nn.relu(x @ e["wi"].T) @ e["wo"].T for e in experts], axis=2)
  gain = jnp.einsum("bted,btd->bte", outputs, reference["in_g"]) * kept

  def layer(kernel):
    routing = with_kernel(router, kernel)(inputs_of(x, Groups(32)), training=True).routing
    rows, tokens = jnp.arange(2)[:, None, None], routing.token
    gains = gain.at[rows, tokens, jnp.arange(4)[None, :, None]].get(mode="fill", fill_value=0.0)
    return (routing.weight * gains).sum()

  gradient = jax.grad(layer)(router.kernel[...])
  np.testing.assert_allclose(gradient.T, reference["grad_router.classifier.weight"], atol=1e-4, rtol=1e-4)
