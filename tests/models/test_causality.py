"""In both models, in training and in evaluation, every router lets a logit know what it declares, and no more."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from moe.evaluation.leak_meters import company_leak, future_leak
from moe.routing import RouterConfig
from tests.models.tiny import ARCHITECTURES, batch, config, model, router
from tests.routing.naive import TIGHT
from tests.slow import slow

ROWS, LENGTH, POSITION = 4, 16, 7


def enlarged(variables):
  """Routers' parameters large enough to make unequal choices."""
  in_router = lambda path: any(getattr(key, "key", None) == "router" for key in path)  # noqa: E731
  floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
  return jax.tree.map_with_path(lambda path, x: 50 * x if in_router(path) and floats(x) else x, variables)


# One of each kind in the smaller model; the larger one and all others with `--slow`: `tests/routing` has the leaks of
# every router alone.
KINDS = {"expert_choice", "switch", "position_grouped", "dropless", "soft_moe", "hash", "moe_plus_plus", "prefix_rank"}
QUICK = {*(("decoder", name) for name in KINDS), ("encoder_decoder", "expert_choice")}
CASES = [
  (architecture, name) if (architecture, name) in QUICK else slow(architecture, name)
  for name in sorted(RouterConfig.choices)
  for architecture in ARCHITECTURES
  if architecture == "decoder" or name in KINDS
]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("architecture", "name"), CASES)
def test_logits_leak_what_the_router_declares(name, architecture, training):
  chosen = router(name, **TIGHT.get(name, {}))
  graph, variables = nnx.split(model(config(architecture, chosen, allow_future_leakage=True)))
  variables, example = enlarged(variables), batch(rows=ROWS, targets=LENGTH)

  @jax.jit
  def logits(targets):
    network = nnx.merge(graph, variables, copy=True)
    return network(example | {"targets": targets}, training=training, key=jax.random.key(2)).logits

  future = future_leak(logits, example["targets"], POSITION, jax.random.key(0))
  company = company_leak(logits, example["targets"], jax.random.key(1))
  assert (future == 0) == chosen.is_causal(training=training), f"{future:.1%} of the logits saw later tokens"
  independent = chosen.is_batch_independent(LENGTH, training=training)
  assert (company == 0) == independent, f"{company:.1%} of the logits saw other sequences"
