"""Ranking gives each label the log-likelihood of a whole forward pass with that label alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.data.objective import ended
from moe.evaluation.scoring.answers import Answerer, read_split
from moe.parallel.mesh import make_mesh
from moe.training.state import merge, split
from tests.evaluation.scoring.tasks import BYTES, config, task


def parameters(settings, scale=20.0):
  """A model's initial ones, with router kernels large enough to choose."""
  graph, params, router_state = split(settings.model.make(nnx.Rngs(1)))
  larger = lambda path, x: scale * x if "router" in jax.tree_util.keystr(path) else x  # noqa: E731
  return graph, jax.tree.map_with_path(larger, params), router_state


def ranked(settings, examples=None):
  """float32 `[examples, labels]` of the twelve examples of the task, or of those of one given."""
  _, params, router_state = parameters(settings)
  answer = Answerer(settings, BYTES, make_mesh(devices=jax.devices()[:1]))
  found = answer(params, router_state, read_split(settings, BYTES, examples or task(), "validation"))
  return np.array([one.scores for one in found])


def naive(settings, task_=None):
  """The same by a forward pass for each example and label: one row, as long as those of training."""
  graph, params, router_state = parameters(settings)
  data, shape = settings.data, settings.data.row_shape(settings.model.row_format)

  @jax.jit
  def logits(batch):
    return merge(graph, params, router_state)(batch, training=False).logits

  task_ = task_ or task()
  totals = []
  for example in task_.examples("validation"):
    totals.append([])
    for option in task_.options:
      batch = shape.empty(1)
      targets = ended(BYTES.encode(option), data.targets_length)
      shape.fill(batch, 0, [(ended(example.inputs, data.inputs_length), targets)])
      log_p = np.asarray(jax.nn.log_softmax(logits(jax.tree.map(jnp.asarray, batch))), np.float64)[0]
      places = np.flatnonzero(batch["loss_weights"][0])
      totals[-1].append(log_p[places, batch["targets"][0, places]].sum())
  return np.array(totals)


IN_DECODERS = {
  "dense": None,
  "dropless": {"name": "dropless"},
  "tight switch": {"name": "switch", "eval_capacity_factor": 0.5},
  "prefix ranks": {"name": "prefix_rank", "slack": 0.0},
  "bigrams": {"name": "hash", "capacity_factor": 1.0, "function": "bigram"},
}
IN_ENCODERS = {
  "dense": None,
  "tight switch": {"name": "switch", "eval_capacity_factor": 0.5},
  "expert choice within rows": {"name": "expert_choice", "group_size": 8},
  "soft": {"name": "soft_moe"},
}


@pytest.mark.parametrize("router", IN_DECODERS.values(), ids=IN_DECODERS)
@pytest.mark.parametrize("decoder_only", [False, True], ids=["inputs and targets", "targets"])
def test_ranking_equals_a_forward_pass_for_each_label(decoder_only, router):
  """Inputs of 1 to 14 letters, with padding in every batch, the last ones longer than a row of training is."""
  settings = config(decoder_only=decoder_only, decoder=router, score={"batch_size": 5})
  np.testing.assert_allclose(ranked(settings), naive(settings), rtol=1e-5)


@pytest.mark.parametrize("router", IN_ENCODERS.values(), ids=IN_ENCODERS)
def test_padding_and_short_rows_change_nothing_that_an_encoder_tells(router):
  settings = config(encoder=router, score={"batch_size": 5})
  settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, inputs_length=40))
  long = task(longest=45)
  np.testing.assert_allclose(ranked(settings, long), naive(settings, long), rtol=1e-5)
