"""Tokens of size 1e4, as an unstable network makes them, leave every router's numbers and gradients finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.routing import RouterConfig, SoftRouting
from tests.routing.naive import inputs_of, make, random_tokens

VARIANTS = [
  *[(name, {}) for name in sorted(RouterConfig.choices)],
  *[(name, {"renormalize": True}) for name in ("expert_choice", "capped_expert_choice", "prefix_rank", "threshold")],
  ("position_grouped", {"renormalize": True, "z_loss": 0.1}),
  ("expert_choice", {"softmax": "tokens", "renormalize": True}),
  ("threshold", {"gate": "sigmoid", "renormalize": True}),
  ("token_choice", {"scores": "sigmoid", "renormalize": True, "balance_loss": 0.1, "z_loss": 0.1}),
  ("token_choice", {"renormalize": True, "renormalize_over": "kept", "capacity_factor": 0.5}),
  ("loss_free", {"renormalize": True, "balance_loss": 0.1}),
  ("quantile_balanced", {"renormalize": True, "balance_loss": 0.1, "bias_on": "logits"}),
  ("sinkhorn_base", {"balance_loss": 0.1}),
  ("noisy_top_k", {"scores": "sigmoid"}),
  ("batch_priority", {"load_bar": "all"}),
  ("reinforce", {"negative_entropy_loss": 0.1}),
  ("straight_through", {"dense_backward": True}),
]


def identifier(variant):
  return variant if isinstance(variant, str) else "-".join(f"{k}={v}" for k, v in variant.items()) or "default"


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=identifier)
def test_numbers_and_gradients_are_finite(name, options):
  router, tokens = make(name, **options), 1e4 * random_tokens(2, 16)
  groups = router.config.groups(2, 16)
  graph, params, state = nnx.split(router, nnx.Param, ...)

  @jax.jit
  def gradients(params, tokens):
    def value(params, tokens):
      module = nnx.merge(graph, params, state, copy=True)
      inputs = inputs_of(tokens, groups, mask=jnp.arange(16)[None] < jnp.array([[16], [11]]), key=jax.random.key(0))
      output = module(inputs, training=True)
      routing, total = output.routing, output.auxiliary_loss
      if isinstance(routing, SoftRouting):
        total += (routing.dispatch**2).sum() + (routing.combine**2).sum()
      else:
        # Not the plain sum, which is constant for gates that sum to 1.
        total += (routing.weight * jnp.cos(routing.token) ** 2).sum()
      if output.policy is not None:
        total += (output.policy.log_prob * 0.1 + output.policy.baseline).sum()
      return total, (output, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param))))

    return jax.grad(value, argnums=(0, 1), has_aux=True)(params, tokens)

  found = gradients(params, tokens)
  for path, leaf in jax.tree.leaves_with_path(found):
    assert np.isfinite(np.asarray(leaf)).all(), jax.tree_util.keystr(path)
