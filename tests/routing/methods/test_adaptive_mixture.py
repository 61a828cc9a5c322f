"""The dense mixture of Jacobs et al. 1991 as a router."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.experts.layer import MoE
from moe.routing import RouterConfig, Site
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
