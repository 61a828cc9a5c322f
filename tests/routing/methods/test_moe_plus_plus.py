"""MoE++: the choice among ordinary and free experts, their balance and their capacities, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.routing import RouterConfig, Site
from moe.routing.losses import balance_loss
from moe.routing.methods.moe_plus_plus import balance_weights
from tests.routing.naive import make, random_tokens, route, token_weights

EXPERTS, FREE = 4, 4


def test_it_is_token_choice_among_all_experts_of_which_the_last_are_free():
  router, tokens = make("moe_plus_plus", top_k=3, tau=1.0), random_tokens(2, 16)
  every = make("dropless", num_experts=EXPERTS + FREE, top_k=3)
  every.kernel[...] = jnp.concatenate([router.kernel[...], router.free_kernel[...]], axis=1)
  ours, theirs = (route(each, tokens, training=True) for each in (router, every))
  expected = np.nan_to_num(token_weights(theirs.routing, 32, EXPERTS + FREE))
  found = np.nan_to_num(token_weights(ours.routing, 32, EXPERTS))
  np.testing.assert_allclose(found, expected[..., :EXPERTS], rtol=1e-6)
  np.testing.assert_allclose(ours.free, expected[..., EXPERTS:], rtol=1e-6)
  assert float(ours.losses["balance"]) == pytest.approx(float(theirs.losses["balance"]), rel=1e-6)
  assert float(ours.auxiliary_loss) == pytest.approx(0.01 * float(ours.losses["balance"]), rel=1e-6)


def test_the_balance_loss_is_1_where_free_experts_have_tokens_by_1_over_tau():
  # Two ordinary experts and a free one that counts half: (E + Z / tau) = 4.
  np.testing.assert_allclose(balance_weights(2, 1, 0.5) * 3, [4, 4, 2])
  probs = jnp.tile(jnp.array([0.5, 0.3, 0.2]), (1, 4, 1)) * balance_weights(2, 1, 0.5)
  mask = jnp.ones((1, 4), bool)

  def loss(*choices):
    return float(balance_loss(probs, jnp.array(choices)[None, :, None], mask))

  assert loss(0, 1, 2, 2) == pytest.approx(4 * (0.25 * 0.5 + 0.25 * 0.3 + 0.5 * 0.5 * 0.2)) == pytest.approx(1)
  assert loss(0, 0, 0, 0) == pytest.approx(4 * 0.5)
  assert loss(2, 2, 2, 2) == pytest.approx(4 * 0.5 * 0.2)


def test_the_router_weighs_its_loss_by_tau():
  probs = np.array([[0.6, 0.1, 0.1, 0.2], [0.2, 0.5, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.2, 0.1, 0.6]])
  router = make("moe_plus_plus", num_experts=2, d_model=4, top_k=1, zero=1, copy=0, constant=1, tau=0.5)
  router.kernel[...], router.free_kernel[...] = jnp.log(probs[:, :2]), jnp.log(probs[:, 2:])
  output = route(router, jnp.eye(4)[None], training=True)
  # Each expert has one token of four; E + Z / tau = 6; the means of the columns of probs.
  expected = 6 * 0.25 * (0.25 + 0.225 + 0.5 * 0.275 + 0.5 * 0.25)
  assert float(output.losses["balance"]) == pytest.approx(expected, rel=1e-5)


def test_capacities_share_the_slots_as_tau_says():
  config = build(RouterConfig, {"name": "moe_plus_plus", "capacity_factor": 2.0, "tau": 0.5})
  slots = config.slots_per_expert(24, 4, training=True)  # 2 * 24 tokens among 4 + 4 / 0.5 shares
  assert (slots, config.slots_per_free_expert(24, 4, training=True)) == (4, 8)
  assert 4 * slots + 4 * 8 == 2 * 24
  config = build(RouterConfig, {"name": "moe_plus_plus", "capacity_factor": 2.0})
  slots = config.slots_per_expert(100, 4, training=True)  # 200 among 4 + 4 / 0.75 shares: 21.4, and 28.57
  assert (slots, config.slots_per_free_expert(100, 4, training=True)) == (21, 28)
  config = build(RouterConfig, {"name": "moe_plus_plus", "capacity_factor": 2.0, "slots": 6})
  assert config.slots_per_free_expert(100, 4, training=True) == 8
  assert config.slots_per_free_expert(7, 4, training=True) == 7


def test_where_one_free_and_one_ordinary_expert_are_full_later_tokens_lose_them():
  router = make("moe_plus_plus", capacity_factor=2.0, tau=0.5, router_bias=True)
  router.kernel[...], router.free_kernel[...] = 0 * router.kernel[...], 0 * router.free_kernel[...]
  router.kernel_bias[...], router.free_bias[...] = jnp.array([0.0, 9.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 8.0, 0.0])
  output = route(router, random_tokens(2, 24))
  weights = token_weights(output.routing, 24, EXPERTS)
  for sequence in range(2):
    np.testing.assert_array_equal(~np.isnan(weights[sequence, :, 1]), np.arange(24) < 4)
    np.testing.assert_array_equal(output.free[sequence, :, 2] > 0, np.arange(24) < 8)
  assert float(output.metrics["dropped"]) == pytest.approx(20 / 24)
  assert float(output.metrics["free_share"]) == pytest.approx(8 / 12)


def test_a_free_experts_room_goes_by_position_so_no_later_token_matters():
  router, tokens = make("moe_plus_plus", capacity_factor=0.75), random_tokens(1, 24)
  before = route(router, tokens).free
  after = route(router, tokens.at[:, 12:].set(random_tokens(1, 12, seed=5))).free
  np.testing.assert_array_equal(before[:, :12], after[:, :12])
  assert (before[:, 12:] != after[:, 12:]).any()
  dropless = route(make("moe_plus_plus"), tokens).free
  assert (before[:, :12] != dropless[:, :12]).any(), "nothing was dropped"


def test_renormalised_gates_sum_to_1_over_both_kinds():
  output = route(make("moe_plus_plus", renormalize=True), random_tokens(2, 16))
  total = np.nan_to_num(token_weights(output.routing, 32, EXPERTS)).sum(-1) + output.free.sum(-1)
  np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"copy": -1}, "copy = -1: expected at least 0"),
    ({"zero": 0, "copy": 0, "constant": 0}, "zero = 0: expected at least 1 of zero, copy and constant together"),
    ({"tau": 0.0}, "tau = 0.0: expected at least 0.01 and at most 1"),
    ({"top_k": 5}, "top_k = 5: expected at most the 4 experts there are"),
  ],
)
def test_options_that_cannot_be(options, message):
  with pytest.raises(ConfigError) as caught:
    build(RouterConfig, {"name": "moe_plus_plus", **options}).check_site(Site(8, EXPERTS))
  assert str(caught.value).endswith(message)
