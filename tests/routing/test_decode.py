"""Decoding step by step gives exactly the routing of the whole sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import RouterConfig, RouterInput
from tests.routing.naive import ids_of, make, of_sequences, random_tokens, route, routing_of, token_weights

BATCH, LENGTH, EXPERTS = 3, 20, 4
DROPPING = [
  ("switch", {"eval_capacity_factor": 0.6}),
  ("causal_gshard", {"eval_capacity_factor": 1.0}),
  ("glam", {"eval_capacity_factor": 0.5}),
  ("token_choice", {"top_k": 3, "capacity_factor": 1.5}),
  ("token_choice", {"top_k": 2, "capacity_factor": 4.0}),
  ("token_choice", {"capacity_factor": None}),
  ("token_choice", {"capacity_factor": 1.0, "renormalize": True, "renormalize_over": "kept", "router_bias": True}),
  ("token_choice", {"slots": 3, "slots_multiple": 4}),
  ("quantile_balanced", {"capacity_factor": 1.0, "bias_on": "logits"}),
  ("token_choice", {"capacity_factor": 1.0, "group_size": 5}),
  ("switch", {"eval_capacity_factor": 0.6, "order": "choice", "group_size": LENGTH}),
  ("switch", {"eval_capacity_factor": 1.0, "order": "choice", "group_size": 10}),
  ("loss_free", {"capacity_factor": 0.75}),
  ("hash", {"function": "bigram", "hashes": 2, "capacity_factor": 1.5}),
  ("k_means", {"capacity_factor": 1.0}),
  ("prefix_rank", {"cap": 2}),
  ("moe_plus_plus", {"capacity_factor": 1.0}),
  ("moe_plus_plus", {"capacity_factor": 1.0, "group_size": 5}),
]
CAUSAL = DROPPING + [
  (name, {}) for name, choice in sorted(RouterConfig.choices.items()) if choice().is_causal(training=False)
]


def decoded(router, tokens, mask) -> np.ndarray:
  """`[B, T, E]` weights, found one position at a time."""

  @jax.jit
  def step(position, token, real, state):
    at = jnp.full(ids_of(token).shape, position)
    output, state = router.decode(RouterInput(token[None], real[None], ids_of(token)[None], at[None]), state)
    return output.routing, state

  state, columns = router.init_decode_state(*mask.shape), []
  for t in range(mask.shape[1]):
    routing, state = step(t, tokens[:, t], mask[:, t], state)
    columns.append(token_weights(routing, mask.shape[0], EXPERTS)[0])
  return np.stack(columns, axis=1)


def evaluated(router, tokens, mask) -> np.ndarray:
  """`[1, T, E]` weights of one sequence, routed as a whole."""
  by_position = router.config.groups(*mask.shape).by_position
  return of_sequences(routing_of(router, tokens, mask=mask), *mask.shape, by_position=by_position)


@pytest.mark.parametrize(("name", "options"), CAUSAL)
def test_decoding_equals_routing_each_whole_sequence_alone(name, options):
  router, tokens = make(name, **options), random_tokens(BATCH, LENGTH)
  mask = jax.random.bernoulli(jax.random.key(5), 0.85, (BATCH, LENGTH))
  whole = np.concatenate([evaluated(router, tokens[i : i + 1], mask[i : i + 1]) for i in range(BATCH)])
  steps = decoded(router, tokens, mask)
  np.testing.assert_array_equal(np.isnan(steps), np.isnan(whole))
  np.testing.assert_allclose(steps, whole, rtol=1e-5)


def test_the_examples_above_do_drop_choices():
  for name, options in DROPPING[:4]:
    assert float(route(make(name, **options), random_tokens(BATCH, LENGTH)).metrics["dropped"]) > 0.1


def test_the_capacity_is_that_of_the_length_given_at_the_start():
  router = make("switch", eval_capacity_factor=1.0)
  np.testing.assert_array_equal(router.init_decode_state(2, 20)["free"], np.full((2, 4), 5))
  np.testing.assert_array_equal(router.init_decode_state(2, 40)["free"], np.full((2, 4), 10))


def test_dropped_choices_lie_in_the_tail_without_weight():
  router, tokens = make("glam"), random_tokens(BATCH, 1)
  state = {"free": jnp.zeros((BATCH, EXPERTS), jnp.int32).at[0].set(1)}
  output, state = router.decode(RouterInput(tokens.reshape(1, BATCH, -1), jnp.ones((1, BATCH), bool)), state)
  np.testing.assert_array_equal(output.routing.token[0], [0, 0] + [BATCH] * 4)
  np.testing.assert_array_equal(output.routing.weight[0, 2:], 0)
  assert int(output.routing.group_sizes.sum()) == 2
  assert int(state["free"].sum()) == EXPERTS - 2


def test_a_router_that_is_not_causal_refuses_to_decode():
  router = make("token_choice", order="batch_priority")
  with pytest.raises(NotImplementedError, match="later tokens"):
    router.decode(None, {})
