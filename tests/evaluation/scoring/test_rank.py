"""Ranking gives each label the log-likelihood of a whole forward pass with that label alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from moe.data.batch import RowShape
from moe.data.objective import ended
from moe.evaluation.scoring.answers import Answerer, read_split
from moe.evaluation.scoring.rank import label_tokens, make_ranker
from moe.models.model_config import DepthConfig
from moe.parallel.mesh import make_mesh
from moe.planning import hlo
from moe.planning.costs import program_costs
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
    for label in task_.labels:
      batch = shape.empty(1)
      targets = ended(BYTES.encode(label), data.targets_length)
      shape.fill(batch, 0, [(ended(example.inputs, data.inputs_length), targets)])
      log_p = np.asarray(jax.nn.log_softmax(logits(jax.tree.map(jnp.asarray, batch))), np.float64)[0]
      places = np.flatnonzero(batch["loss_weights"][0])
      totals[-1].append(log_p[places, batch["targets"][0, places]].sum())
  return np.array(totals)


def cases(**routers):
  """The routers by name, all but the first two slow."""
  names = [(name.replace("_", " "), router) for name, router in routers.items()]
  return [pytest.param(one, id=name, marks=pytest.mark.slow if i > 1 else ()) for i, (name, one) in enumerate(names)]


IN_DECODERS = cases(
  dense=None,
  tight_switch={"name": "switch", "eval_capacity_factor": 0.5},
  dropless={"name": "dropless"},
  prefix_ranks={"name": "prefix_rank", "slack": 0.0},
  bigrams={"name": "hash", "capacity_factor": 1.0, "function": "bigram"},
)
IN_ENCODERS = cases(
  tight_switch={"name": "switch", "eval_capacity_factor": 0.5},
  expert_choice_within_rows={"name": "expert_choice", "group_size": 8},
  soft={"name": "soft_moe"},
)


@pytest.mark.parametrize("router", IN_DECODERS)
@pytest.mark.parametrize("decoder_only", [False, True], ids=["inputs and targets", "targets"])
def test_ranking_equals_a_forward_pass_for_each_label(decoder_only, router):
  """Inputs of 1 to 14 letters, with padding in every batch, the last ones longer than a row of training is."""
  settings = config(decoder_only=decoder_only, decoder=router, score={"batch_size": 5})
  np.testing.assert_allclose(ranked(settings), naive(settings), rtol=1e-5)


def test_ranking_passes_the_same_tokens_by_as_a_forward_pass_for_each_label():
  """Although all labels share a row, in which a token is taken or not by what it is alone."""
  settings = config(decoder_only=True, score={"batch_size": 5})
  decoder = dataclasses.replace(settings.model.decoder, depth=DepthConfig())
  settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, decoder=decoder))
  np.testing.assert_allclose(ranked(settings), naive(settings), rtol=1e-5)


@pytest.mark.parametrize("router", IN_ENCODERS)
def test_padding_and_short_rows_change_nothing_that_an_encoder_tells(router):
  settings = config(encoder=router, score={"batch_size": 5})
  settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, inputs_length=40))
  long = task(longest=45)
  np.testing.assert_allclose(ranked(settings, long), naive(settings, long), rtol=1e-5)


def test_labels_that_begin_alike_share_their_states():
  """Of "ab", "ac" and "b": those before anything, after "a", and after each whole text, from which EOS is predicted."""
  labels = label_tokens([np.array(ids) for ids in ([7, 8, 1], [7, 9, 1], [8, 1])], 4, causal=True)
  np.testing.assert_array_equal(labels.ids, [[7, 8, 1, 0], [7, 9, 1, 0], [8, 1, 0, 0]])
  np.testing.assert_array_equal(labels.lengths, [3, 3, 2])
  np.testing.assert_array_equal(labels.states, [0, 1, 2, 6, 9])
  np.testing.assert_array_equal(labels.state[:, :3], [[0, 1, 2], [0, 1, 3], [0, 4, 0]])
  apart = label_tokens([np.array(ids) for ids in ([7, 8, 1], [7, 9, 1])], 3, causal=False)
  assert len(apart.states) == 6


def test_labels_are_told_apart_where_a_decoder_sees_later_tokens():
  settings = config(decoder={"name": "expert_choice", "group_size": 16}, score={"batch_size": 5})
  np.testing.assert_allclose(ranked(settings), naive(settings), rtol=1e-5)


def test_a_score_that_depends_on_its_batch_is_the_same_each_time():
  settings = config(encoder={"name": "expert_choice"}, score={"batch_size": 5})
  np.testing.assert_array_equal(ranked(settings), ranked(settings))


def flops(f, *arguments, **named):
  """Of all matrix products, as written."""
  return program_costs(hlo.parse(f.lower(*arguments, **named).as_text("hlo")), 1).flops


@pytest.mark.parametrize("decoder_only", [False, True], ids=["inputs and targets", "targets"])
def test_ranking_costs_little_more_than_a_forward_pass_over_the_longest_label(decoder_only):
  """T5-small's sizes, inputs of 128 tokens, labels of 1, 2 and 4 tokens and their EOS."""
  sizes = {"vocab_size": 32128, "d_model": 512, "d_ff": 1024, "num_heads": 6, "d_head": 64}
  model = config(decoder_only=decoder_only).model
  deep = {name: dataclasses.replace(stack, layers=8) for name, stack in model.stacks.items()}
  model = dataclasses.replace(model, **sizes | deep)
  graph, params, router_state = split(nnx.eval_shape(lambda: model.make(nnx.Rngs(0))))
  labels = [np.array([*range(2, 2 + tokens), 1]) for tokens in (1, 2, 4)]
  inputs = {name: jnp.zeros((4, 128), jnp.int32) for name in ("inputs", "inputs_positions", "inputs_segments")}
  ranking = flops(
    make_ranker(model, make_mesh(devices=jax.devices()[:1])),
    params,
    router_state,
    inputs,
    label_tokens(labels, 5, causal=True),
  )
  shape = RowShape(model.row_format, 128, 5)
  whole = {name: jnp.asarray(array) for name, array in shape.empty(4).items()}
  forward = jax.jit(lambda *state, batch: merge(graph, *state)(batch, training=False).logits)
  assert ranking < 1.15 * flops(forward, params, router_state, batch=whole)
