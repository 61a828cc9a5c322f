"""The meter on a whole decoder: it finds the leak of expert choice in every layer, and none in a causal router."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from moe.evaluation.restore import Trained
from moe.parallel.mesh import make_mesh
from moe.report.decoder_leaks import decoder_leaks
from moe.training.experiment import load_config
from moe.training.state import split
from tests.models.tiny import batch, config, router, stack
from tests.training.tiny import tiny_mapping


def trained(tmp_path, decoder_router) -> Trained:
  """A decoder of two MoE layers whose routers' kernels are large enough to choose."""
  model = config("decoder", stack(decoder_router, layers=4), allow_future_leakage=True)
  graph, params, router_state = split(model.make(nnx.Rngs(0)))
  params = jax.tree.map_with_path(lambda path, x: 50 * x if "router" in jax.tree_util.keystr(path) else x, params)
  whole = dataclasses.replace(load_config(tiny_mapping(tmp_path)), model=model)
  return Trained(whole, 0, graph, params, router_state, {}, make_mesh())


@pytest.mark.parametrize(
  ("name", "options", "leaks"), [("expert_choice", {"group_size": 4}, True), ("glam", {}, False)]
)
def test_a_leak_is_found_in_every_layer_where_there_is_one(tmp_path, name, options, leaks):
  example = batch(rows=32, targets=8)
  found = decoder_leaks(trained(tmp_path, router(name, **options)), example, np.asarray(example["targets"]).ravel())
  assert found.nats.shape == found.standard_error.shape == (2,)
  if leaks:
    assert (found.nats > 5 * found.standard_error).all()
  else:
    assert (np.abs(found.nats) < 4 * found.standard_error).all()


def test_a_dense_decoder_has_no_routers_to_ask(tmp_path):
  assert decoder_leaks(trained(tmp_path, None), batch(), np.arange(2, 20)) is None
