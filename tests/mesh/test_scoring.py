"""Answers to a task are the same on any mesh, ranked or decoded."""

import functools

import jax
import numpy as np
import pytest

from moe.evaluation.scoring.answers import Answerer, read_split
from moe.parallel.mesh import MeshConfig, make_mesh
from moe.training.state import abstract_model, shardings_of
from tests.evaluation.scoring.tasks import BYTES, config, task
from tests.evaluation.scoring.test_rank import parameters
from tests.slow import slow

MODELS = {
  "groups of a batch": {"encoder": {"name": "expert_choice"}, "decoder": {"name": "switch"}},
  "a decoder": {"decoder_only": True, "decoder": {"name": "dropless"}},
}


@functools.cache
def answers(kind, method, shape):
  """The texts, and the labels' log-likelihoods if they are ranked."""
  settings = config(**MODELS[kind], vocab_size=260, score={"batch_size": 8, "method": method})
  mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
  abstract = abstract_model(settings.model.make, mesh)
  _, *state = parameters(settings)
  params, router_state = jax.device_put(tuple(state), shardings_of((abstract.params, abstract.router_state)))
  found = Answerer(settings, BYTES, mesh)(params, router_state, read_split(settings, BYTES, task(), "validation"))
  return [one.text for one in found], np.array([one.scores for one in found])


@pytest.mark.parametrize("shape", [(2, 2, 2), slow((1, 4, 1))])
@pytest.mark.parametrize(
  ("kind", "method"),
  [
    ("groups of a batch", "rank"),
    ("a decoder", "decode"),
    slow("groups of a batch", "decode"),
    slow("a decoder", "rank"),
  ],
)
def test_answers_are_the_same_on_every_mesh(kind, method, shape):
  texts, scores = answers(kind, method, shape)
  expected_texts, expected = answers(kind, method, (1, 1, 1))
  assert texts == expected_texts
  np.testing.assert_allclose(scores, expected, rtol=2e-5)
