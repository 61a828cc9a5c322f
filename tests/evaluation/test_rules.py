"""A decoder is evaluated under its own rule and, if that sees later tokens, also under a causal one."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from moe.data import make_vocabulary
from moe.evaluation import rules
from moe.evaluation.leak_meters import future_leak
from moe.evaluation.restore import Trained
from moe.models.model_config import DepthConfig
from moe.parallel.mesh import make_mesh
from moe.training.feed import describe
from moe.training.state import split
from tests.models.tiny import router, stack
from tests.training.tiny import tiny_config, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.jsonl", documents=30)


def trained(corpus, decoder_router, **changes):
  """A model with its initial parameters and this router in the decoder, large enough in its kernels to choose."""
  config = tiny_config(corpus)
  changes |= {"decoder": stack(decoder_router), "allow_future_leakage": True}
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))
  graph, params, router_state = split(config.model.make(nnx.Rngs(1)))
  path = lambda keys: "/".join(str(key.key) for key in keys)  # noqa: E731
  params = jax.tree.map_with_path(lambda keys, x: 50 * x if "router" in path(keys) else x, params)
  return Trained(config, 0, graph, params, router_state, describe(make_vocabulary(config.data)), make_mesh())


def test_a_leaky_router_is_also_evaluated_by_its_causal_twin(corpus):
  leaky = trained(corpus, router("batch_priority", capacity_factor=1.0))
  found = rules.evaluate_by_rules(leaky, leaky.config.data, "validation")
  assert found["rule"] == {"router": "batch_priority", "causal": False, "trained_causally": False}
  assert found["causal_rule"]["rule"]["causal"]
  assert found["leak_nats"] == pytest.approx(found["causal_rule"]["loss"] - found["loss"]) and found["leak_nats"] != 0


@pytest.mark.parametrize("name", ["expert_choice", "batch_priority"])
def test_the_twin_has_the_same_parameters_and_sees_no_later_token(corpus, name):
  own = trained(corpus, router(name))
  twin = rules.under_causal_rule(own)
  jax.tree.map(np.testing.assert_array_equal, own.params, twin.params)
  targets = jax.random.randint(jax.random.key(0), (4, 16), 2, 250)
  ones = jax.numpy.ones_like(targets)
  positions = jax.numpy.broadcast_to(jax.numpy.arange(16), ones.shape)
  sides = {side: {side: targets, f"{side}_segments": ones, f"{side}_positions": positions} for side in ("inputs",)}
  leaks = []
  for model in (own, twin):
    graph, variables = nnx.split(model.model)

    @jax.jit
    def logits(ids, graph=graph, variables=variables):
      batch = sides["inputs"] | {"targets": ids, "targets_segments": ones, "targets_positions": positions}
      return nnx.merge(graph, variables)(batch, training=False).logits

    leaks.append(future_leak(logits, targets, 7, jax.random.key(1)))
  assert leaks[0] > 0 and leaks[1] == 0


def test_a_decoder_whose_blocks_tokens_may_pass_by_has_one_rule_which_is_causal(corpus):
  model = dataclasses.replace(trained(corpus, None).config.model, decoder=stack(depth=DepthConfig()))
  assert rules.describe_rule(model) == {"router": "dense", "causal": True, "trained_causally": False}


def test_a_causal_or_dense_decoder_has_one_rule(corpus):
  for decoder_router in (None, router("glam")):
    model = trained(corpus, decoder_router)
    rule = rules.describe_rule(model.config.model)
    assert rule == {
      "router": decoder_router.name if decoder_router else "dense",
      "causal": True,
      "trained_causally": True,
    }
    assert rules.under_causal_rule(model) is None
