"""Static gates against their closed forms, and DSelect-k's against the router's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError, build
from moe.routing.methods.static_gates import StaticGateConfig
from tests.routing.naive import make, random_tokens, route


def gate(name, experts=4, **options):
  return build(StaticGateConfig, {"name": name, **options}).make(experts, nnx.Rngs(0))


def test_top_k_is_the_softmax_over_the_k_highest_logits_and_only_they_have_gradients():
  top = gate("top_k", k=2)
  top.logits[...] = jnp.log(jnp.array([1.0, 3.0, 0.5, 1.5]))
  weight, loss = top()
  np.testing.assert_allclose(weight, [0, 2 / 3, 0, 1 / 3], rtol=1e-6)
  assert float(loss) == 0
  graph, params = nnx.split(top)
  gradient = jax.grad(lambda params: nnx.merge(graph, params)()[0][1])(params)["logits"][...]
  np.testing.assert_allclose(gradient, [0, 2 / 9, 0, -2 / 9], atol=1e-6)


def test_softmax_gives_every_expert_its_weight():
  soft = gate("softmax")
  soft.logits[...] = jnp.log(jnp.array([1.0, 3.0, 0.5, 1.5]))
  np.testing.assert_allclose(soft()[0], np.array([1, 3, 0.5, 1.5]) / 6, rtol=1e-6)


def test_dselect_k_mixes_selectors_which_are_products_of_smooth_steps():
  """S(0.25) = 27/32 for gamma 1; the second selector is binary, and so has no entropy."""
  dselect = gate("dselect_k", k=2, entropy_loss=0.5)
  dselect.z[...], dselect.alpha[...] = jnp.array([[0.25, -0.5], [0.5, 0.5]]), jnp.log(jnp.array([3.0, 1.0]))
  weight, loss = dselect()
  np.testing.assert_allclose(weight, [0.75 * 5 / 32, 0, 0.75 * 27 / 32, 0.25], rtol=1e-6)
  entropy = -(5 / 32 * np.log(5 / 32) + 27 / 32 * np.log(27 / 32))
  assert float(loss) == pytest.approx(0.5 * entropy, abs=1e-5)


def test_dselect_k_of_six_experts_pays_for_the_weight_on_codes_without_one():
  dselect = gate("dselect_k", experts=6, k=1, entropy_loss=0.0)
  dselect.z[...] = jnp.zeros((1, 3))
  weight, loss = dselect()
  np.testing.assert_allclose(weight, np.full(6, 1 / 8), rtol=1e-6)
  assert float(loss) == pytest.approx(8 / 6)


def test_the_static_router_is_this_gate_for_every_token():
  router = make("dselect_k", num_experts=6, gate="static", entropy_loss=0.1)
  static = gate("dselect_k", experts=6, entropy_loss=0.1)
  static.z[...], static.alpha[...] = router.z[...], router.alpha[...]
  output, (weight, loss) = route(router, random_tokens(1, 8)), static()
  np.testing.assert_allclose(output.routing.weight[0].reshape(6, 8), np.tile(weight[:, None], 8), rtol=1e-6)
  assert float(output.auxiliary_loss) == pytest.approx(float(loss))


@pytest.mark.parametrize("name", ["top_k", "dselect_k"])
def test_more_experts_than_there_are_and_none_are_refused(name):
  with pytest.raises(ConfigError, match="k = 5: expected at most the 4 experts there are"):
    gate(name, k=5)
  with pytest.raises(ConfigError, match="k = 0: expected at least 1 expert"):
    gate(name, k=0)
