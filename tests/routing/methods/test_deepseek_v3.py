"""DeepSeek-V3's choice among groups, on scores small enough to follow by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError, build
from moe.routing import RouterConfig, RouterInput, Site
from moe.routing.methods.deepseek_v3 import within_best_groups
from tests.routing.naive import learn, make, random_tokens, route, token_weights


def test_a_group_is_judged_by_its_two_best_experts_and_others_than_the_best_groups_are_out():
  #                     group 0          group 1          group 2
  ranking = jnp.array([[0.9, 0.1, 0.1, 0.5, 0.6, 0.0, 0.4, 0.4, 0.4]])
  found = within_best_groups(ranking, groups=3, chosen=1)  # sums: 1.0, 1.1, 0.8
  np.testing.assert_array_equal(jnp.isfinite(found), [[0, 0, 0, 1, 1, 1, 0, 0, 0]])
  found = within_best_groups(ranking, groups=3, chosen=2)
  np.testing.assert_array_equal(jnp.where(jnp.isfinite(found), found, -1), ranking.at[:, 6:].set(-1))


def test_all_groups_or_one_leave_the_ranking_as_it_is():
  ranking = jnp.array([[0.3, -0.2, 0.9, 0.1]])
  for groups in (1, 2, 4):
    np.testing.assert_array_equal(within_best_groups(ranking, groups, groups), ranking)


def test_a_tokens_experts_are_the_best_of_its_groups_and_its_gates_their_share_of_the_sigmoids():
  experts, tokens = 8, random_tokens(2, 16)
  router = make("deepseek_v3", num_experts=experts, top_k=3, expert_groups=4, chosen_groups=2)
  router.bias[...] = jnp.linspace(-0.3, 0.3, experts)
  scores = 1 / (1 + np.exp(-np.asarray(tokens @ router.kernel[...], np.float64)))
  biased = scores + np.linspace(-0.3, 0.3, experts)
  expected = np.zeros((*tokens.shape[:2], experts))
  for place in np.ndindex(*tokens.shape[:2]):
    groups = biased[place].reshape(4, 2).sum(1).argsort()[-2:]
    allowed = [expert for expert in range(experts) if expert // 2 in groups]
    chosen = sorted(allowed, key=lambda expert: -biased[place][expert])[:3]
    expected[place][chosen] = scores[place][chosen] / scores[place][chosen].sum()
  output = route(router, tokens, training=True)
  np.testing.assert_allclose(
    np.nan_to_num(token_weights(output.routing, 32, experts)), expected.reshape(1, 32, experts), atol=1e-6
  )


def test_the_loss_counts_the_highest_scores_and_the_bias_moves_by_the_real_choices():
  """Equations 17 to 20: every token scores experts 0 and 1 highest, 0.8 each of a sum of 0.8 * 2 + 0.4 * 6 = 4."""
  router = make("deepseek_v3", num_experts=8, d_model=1, expert_groups=4, chosen_groups=1, bias_rate=0.1)
  score = jnp.array([0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])
  router.kernel[...] = jnp.log(score / (1 - score))[None]
  router.bias[...] = jnp.array([-0.5, -0.5, 0, 0, 0, 0, 0, 0])
  inputs = RouterInput(jnp.ones((2, 3, 1)), jnp.ones((2, 3), bool), length=3)
  (output,) = learn(router, inputs)
  weights = token_weights(output.routing, 3, 8)
  np.testing.assert_array_equal(np.isfinite(weights), np.broadcast_to([0, 0, 1, 1, 0, 0, 0, 0], weights.shape))
  # f = 8 / 2 of the two and p = 0.8 / 4; the experts that were chosen would give 8 / 2 * (0.4 / 4 + 0.4 / 4) = 0.8.
  assert float(output.losses["balance"]) == pytest.approx(8 / 2 * (0.8 / 4 + 0.8 / 4))
  assert float(output.auxiliary_loss) == pytest.approx(1e-4 * 1.6)
  np.testing.assert_allclose(router.bias[...], [-0.4, -0.4, -0.1, -0.1, 0.1, 0.1, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"expert_groups": 3}, "expert_groups = 3: expected a divisor of the 8 experts"),
    ({"chosen_groups": 5}, "chosen_groups = 5: expected at least 1 and at most expert_groups = 4"),
    ({"top_k": 3, "chosen_groups": 1}, "top_k = 3: expected at most the 2 experts of chosen_groups = 1"),
  ],
)
def test_groups_that_cannot_be(options, message):
  with pytest.raises(ConfigError) as caught:
    build(RouterConfig, {"name": "deepseek_v3", **options}).check_site(Site(8, 8))
  assert str(caught.value).endswith(message)
