"""Every router is what it declares to be: nothing leaks from the future, or from other sequences, unless it says so.

The meters must also find the leaks of routers that declare them, or passing would mean nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import build
from moe.evaluation.leak_meters import company_leak, future_leak
from moe.experts import dispatch as local
from moe.routing import RouterConfig, SoftRouting
from tests.routing.naive import TIGHT, make, of_sequences, random_tokens, routing_of

BATCH, LENGTH, POSITION = 4, 16, 9
VARIANTS = [
  *[(name, TIGHT.get(name, {})) for name in sorted(RouterConfig.choices)],
  ("expert_choice", {"group_size": 8}),
  ("expert_choice", {"group_size": 32, "renormalize": True}),
  ("switch", {"capacity_factor": 0.5, "eval_capacity_factor": 0.5}),
  ("causal_gshard", {"capacity_factor": 0.5}),
  ("gshard", {"capacity_factor": 0.75, "group_size": 16}),
  ("gshard", {"capacity_factor": 0.75, "group_size": 32}),
  ("glam", {"capacity_factor": 0.5}),
  ("token_choice", {"capacity_factor": None, "noise": 1.0}),
  ("token_choice", {"capacity_factor": None, "order": "batch_priority", "group_size": 32}),
  ("token_choice", {"capacity_factor": 0.75, "order": "batch_priority"}),
  ("token_choice", {"capacity_factor": 0.75, "order": "batch_priority", "group_size": 8}),
  ("token_choice", {"capacity_factor": 0.75, "group_size": 8}),
  ("token_choice", {"capacity_factor": 0.75, "group_size": 32}),
  ("token_choice", {"capacity_factor": 0.75, "order": "score"}),
  ("token_choice", {"capacity_factor": 0.75, "order": "score", "group_size": 16}),
  ("token_choice", {"capacity_factor": 1.0, "order": "random"}),
  ("switch", {"capacity_factor": 0.5, "eval_capacity_factor": 0.5, "order": "choice"}),
  ("switch", {"capacity_factor": 0.5, "eval_capacity_factor": 0.5, "order": "choice", "group_size": 16}),
  ("loss_free", {"capacity_factor": 0.75}),
  ("loss_free", {"capacity_factor": 0.75, "order": "choice", "group_size": 32}),
  ("noisy_top_k", {"capacity_factor": 0.75}),
  ("strictly_balanced", {"group_size": 8}),
  ("hash", {"function": "future"}),
  ("hash", {"function": "bigram", "hashes": 2, "capacity_factor": 1.5}),
  ("k_means", {"balanced": True}),
  ("prefix_rank", {"slack": 0.0}),
  ("prefix_rank", {"cap": 2}),
  ("prefix_rank", {"pseudo_observations": 8.0}),
  ("threshold", {"warmup_steps": 3}),
  ("threshold", {"gate": "sigmoid", "slack": None}),
  ("straight_through", {"dense_backward": True}),
  ("stochastic_times_smooth", {"evaluation": "threshold"}),
  ("moe_plus_plus", {"capacity_factor": 0.75}),
]


def identifier(variant):
  return variant if isinstance(variant, str) else "-".join(f"{k}={v}" for k, v in variant.items()) or "default"


def weights_of(router, training: bool):
  """A function from tokens to the weights `[B, T, E]` with which experts see them, the key fixed.

  Of soft routing, to what experts that give back their input would make of a token, `[B, T, d]`.
  """
  groups = router.config.groups(BATCH, LENGTH)

  def function(tokens):
    routing = routing_of(router, tokens, training=training, key=jax.random.key(3))
    if isinstance(routing, SoftRouting):
      return groups.join(local.combine_soft(local.dispatch_soft(groups.cut(tokens), routing), routing), BATCH, LENGTH)
    return of_sequences(routing, BATCH, LENGTH, by_position=groups.by_position)

  return function


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=identifier)
def test_leaks_are_those_that_the_router_declares(name, options, training):
  function, tokens = weights_of(make(name, **options), training), random_tokens(BATCH, LENGTH)
  config = build(RouterConfig, {"name": name, **options})
  future = future_leak(function, tokens, POSITION, jax.random.key(7))
  company = company_leak(function, tokens, jax.random.key(8))
  assert (future == 0) == config.is_causal(training=training), f"{future:.1%} of the outputs saw the future"
  independent = config.is_batch_independent(LENGTH, training=training)
  assert (company == 0) == independent, f"{company:.1%} of the outputs saw other sequences"


def test_meters_read_what_they_say_on_functions_with_known_leaks():
  tokens = jax.random.randint(jax.random.key(0), (3, 8), 1, 1000)
  key = jax.random.key(1)
  assert future_leak(lambda x: x, tokens, 4, key) == 0
  assert future_leak(lambda x: jnp.cumsum(x, 1), tokens, 4, key) == 0
  assert future_leak(lambda x: x + x.sum(1, keepdims=True), tokens, 4, key) == 1
  # Each position sees the next one: of the 5 earlier outputs only the last changes.
  assert future_leak(lambda x: jnp.roll(x, -1, axis=1), tokens, 4, key) == pytest.approx(1 / 5)
  assert company_leak(lambda x: jnp.cumsum(x, 1), tokens, key) == 0
  assert company_leak(lambda x: x + x.sum(0, keepdims=True), tokens, key) > 0.9


def test_the_future_meter_holds_the_other_sequences_fixed():
  """Position-grouped routing sees other sequences, but not its own future."""
  tokens = random_tokens(3, 8)
  by_position = lambda x: x - x.mean(0, keepdims=True)  # noqa: E731
  assert future_leak(by_position, tokens, 4, jax.random.key(1)) == 0
  assert company_leak(by_position, tokens, jax.random.key(1)) > 0.9


def test_a_change_in_one_bit_is_a_leak():
  tokens = jax.random.randint(jax.random.key(0), (2, 8), 1, 1000)
  last = tokens[:, -1:]

  def faint(x):
    return jnp.broadcast_to(jnp.where(x[:, -1:] == last, 1.0, jnp.nextafter(1.0, 2.0)), x.shape)

  assert future_leak(faint, tokens, 4, jax.random.key(1)) == 1


def test_meters_work_on_bfloat16_and_refuse_what_they_cannot_measure():
  tokens = random_tokens(2, 8).astype(jnp.bfloat16)
  assert future_leak(lambda x: x[:, ::-1], tokens, 4, jax.random.key(1)) > 0
  with pytest.raises(ValueError, match="position = 7: expected at least 0 and at most 6"):
    future_leak(lambda x: x, tokens, 7, jax.random.key(1))
  with pytest.raises(ValueError, match="a batch of 1"):
    company_leak(lambda x: x, tokens[:1], jax.random.key(1))
  assert np.isfinite(company_leak(lambda x: x, tokens, jax.random.key(1)))
