"""What holds for every router: names, gradients, dtypes, jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError, build
from moe.routing import RouterConfig, Site, SlotRouting
from moe.routing.groups import Groups, checked_groups
from moe.routing.scores import router_kernel, router_logits
from tests.routing.naive import NUM_EXPERTS, make, random_tokens, route, routing_of, with_kernel

VARIANTS = [
  *[(name, {}) for name in ("expert_choice", "switch", "causal_gshard", "gshard", "glam", "token_choice")],
  ("expert_choice", {"renormalize": True, "z_loss": 0.1, "group_size": 16}),
  ("token_choice", {"capacity_factor": None, "renormalize": True, "z_loss": 0.1}),
  ("token_choice", {"order": "batch_priority", "noise": 1.0, "importance_loss": 0.1, "load_loss": 0.1}),
  ("token_choice", {"order": "score", "capacity_factor": 1.0}),
  ("token_choice", {"order": "random", "capacity_factor": 1.0, "group_size": 16}),
  ("token_choice", {"scores": "sigmoid", "renormalize": True, "balance_loss": 0.1}),
  ("noisy_top_k", {}),
]


def test_the_published_families_are_registered():
  assert {"expert_choice", "switch", "gshard", "causal_gshard", "glam", "token_choice"} <= RouterConfig.choices.keys()


def test_an_unknown_router_is_refused_with_the_names_there_are():
  with pytest.raises(ConfigError, match=r"config\.name = 'expertchoice': expected one of adaptive_mixture, "):
    build(RouterConfig, {"name": "expertchoice"})


def losses_and_weights(output, gain):
  """A scalar of everything the gradient flows through: `gain` `[E, n + 1]` by expert and token, not by slot."""
  token = output.routing.token
  by_expert = isinstance(output.routing, SlotRouting)
  gains = jnp.take_along_axis(gain[None], token, axis=-1) if by_expert else gain[0][token]
  return (output.routing.weight * gains).sum() + output.auxiliary_loss


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_kernel_gradient_agrees_with_finite_differences_away_from_ties(name, options):
  router, tokens = make(name, **options), random_tokens(2, 16)
  kernel, rng = router.kernel[...], np.random.default_rng(0)
  gain = jnp.asarray(rng.normal(size=(NUM_EXPERTS, 33)), jnp.float32)
  direction = jnp.asarray(rng.normal(size=kernel.shape), jnp.float32)

  @jax.jit
  def value_and_choices(kernel):
    output = route(with_kernel(router, kernel), tokens, training=True, key=jax.random.key(0))
    return losses_and_weights(output, gain), jnp.sort(output.routing.token, axis=-1)

  gradient = jax.grad(value_and_choices, has_aux=True)(kernel)[0]
  step = 2e-3
  (higher, choices), (lower, others) = (value_and_choices(kernel + s * direction) for s in (step, -step))
  np.testing.assert_array_equal(choices, others, err_msg="the step crosses a tie")
  assert float(jnp.abs(gradient).max()) > 0
  difference = float(higher - lower) / (2 * step)
  assert float((gradient * direction).sum()) == pytest.approx(difference, rel=0.01, abs=2e-3)


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_compiled_and_mapped_over_layers_it_routes_bfloat16_tokens_as_float32_ones(name):
  routers = [make(name, seed=seed) for seed in range(2)]
  graph = nnx.split(routers[0])[0]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nnx.state(r) for r in routers))
  tokens, key = random_tokens(4, 16).astype(jnp.bfloat16), jax.random.key(0)

  @jax.jit
  def mapped(tokens):
    one = lambda state: routing_of(nnx.merge(graph, state), tokens, training=True, key=key)  # noqa: E731
    return jax.vmap(one, axis_size=2)(stacked)  # the size is for routers that hold no array

  low = mapped(tokens)
  for layer, router in enumerate(routers):
    alone = routing_of(router, tokens.astype(jnp.float32), training=True, key=key)
    for one, of_all in zip(jax.tree.leaves(alone), jax.tree.leaves(low), strict=True):
      assert one.dtype in (jnp.int32, jnp.float32)
      np.testing.assert_allclose(of_all[layer], one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_it_names_its_paper(name):
  assert len(RouterConfig.choices[name].paper) > 10


def test_the_kernel_starts_normal_with_standard_deviation_a_fiftieth():
  kernel = router_kernel(Site(256, 64), nnx.Rngs(0))[...]
  assert kernel.shape == (256, 64)
  assert kernel.dtype == jnp.float32
  assert float(kernel.std()) == pytest.approx(0.02, rel=0.02)


def test_logits_of_bfloat16_tokens_are_not_rounded_to_bfloat16():
  tokens = random_tokens(1, 4, d_model=256).astype(jnp.bfloat16)
  kernel = router_kernel(Site(256, 8), nnx.Rngs(0))[...]
  expected = np.asarray(tokens, np.float64) @ np.asarray(kernel, np.float64)
  np.testing.assert_allclose(router_logits(tokens, kernel), expected, rtol=1e-4, atol=1e-6)


def test_a_group_size_that_does_not_divide_the_batch_is_refused_with_the_nearest_that_does():
  with pytest.raises(ConfigError, match=r"group_size = 100: expected a divisor of 8 x 64 = 512 tokens, such as 128"):
    checked_groups(100, batch=8, length=64)
  assert checked_groups(0, batch=8, length=64) == Groups(512)


def test_in_evaluation_a_group_is_the_next_larger_divisor_of_the_batch_or_all_of_it():
  found = [checked_groups(128, batch, length, training=False).size for batch, length in [(8, 64), (3, 129), (5, 60)]]
  assert found == [128, 129, 150]
  assert [checked_groups(128, 1, length, training=False).size for length in (1, 100, 131)] == [1, 100, 131]
