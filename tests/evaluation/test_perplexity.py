"""Evaluation of a checkpoint is exact over a split, and refuses any other vocabulary than the checkpoint's."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.data import make_pipeline, make_vocabulary
from moe.evaluation.perplexity import evaluate
from moe.evaluation.restore import Trained
from moe.evaluation.summary import experts_per_token_lines, gzip_bits_per_byte
from moe.models import StackConfig
from moe.parallel.mesh import make_mesh
from moe.training.feed import describe
from moe.training.state import split
from tests.training.tiny import tiny_config, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("corpus") / "sentences.jsonl", documents=30)


@pytest.fixture(scope="module")
def trained(corpus):
  """A dense model with its initial parameters, as if trained: no token depends on the rest of its batch."""
  config = tiny_config(corpus)
  model = dataclasses.replace(config.model, encoder=StackConfig(layers=2))
  config = dataclasses.replace(config, model=model)
  graph, params, router_state = split(model.make(nnx.Rngs(1)))
  return Trained(config, 0, graph, params, router_state, describe(make_vocabulary(config.data)), make_mesh())


def test_the_result_equals_a_float64_sum_over_single_tokens(trained):
  data, model = trained.config.data, trained.model
  nll, correct, count, text = 0.0, 0, 0, 0
  lengths = make_vocabulary(data).byte_lengths()
  with make_pipeline(data, "inputs_and_targets", "validation", training=False) as pipeline:
    for batch in pipeline:
      logits = np.asarray(model(jax.tree.map(jax.numpy.asarray, batch), training=False).logits, np.float64)
      log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      for row, position in zip(*np.nonzero(batch["loss_weights"])):
        token = batch["targets"][row, position]
        nll -= log_p[row, position, token]
        correct += logits[row, position].argmax() == token
        count, text = count + 1, text + lengths[token]
  found = evaluate(trained, data, "validation")
  assert (found["tokens"], found["bytes"]) == (count, text)
  assert found["loss"] == pytest.approx(nll / count, rel=1e-5)
  assert found["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
  assert found["bits_per_byte"] == pytest.approx(nll / text / math.log(2), rel=1e-5)
  assert found["accuracy"] == pytest.approx(correct / count, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_neither_padding_nor_unequal_batches_change_the_result(trained, batch_size):
  """Each batch size leaves another amount of padding in the last batch."""
  expected = evaluate(trained, trained.config.data, "validation")
  found = evaluate(trained, dataclasses.replace(trained.config.data, batch_size=batch_size), "validation")
  assert (found["tokens"], found["bytes"]) == (expected["tokens"], expected["bytes"])
  assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_any_batch_size_evaluates_a_run_of_several_micro_batches(trained, batch_size):
  """Training had 4 rows in 4 micro-batches."""
  expected, config = evaluate(trained, trained.config.data, "validation"), trained.config
  accumulating = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=4))
  data = dataclasses.replace(config.data, batch_size=batch_size)
  found = evaluate(dataclasses.replace(trained, config=accumulating), data, "validation")
  assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_batches_that_do_not_fit_are_refused_before_anything_is_allocated(trained, monkeypatch):
  monkeypatch.setattr("moe.training.setup.host_memory", lambda: 2**20)
  data = dataclasses.replace(trained.config.data, batch_size=4096)
  with pytest.raises(ConfigError, match=r"config.data.batch_size = 4096: expected at most about 2048: the arrays"):
    evaluate(trained, data, "validation")


def test_a_vocabulary_smaller_than_the_checkpoints_is_refused(trained):
  larger = dataclasses.replace(trained, vocabulary=trained.vocabulary | {"size": 300, "fingerprint": "x"})
  with pytest.raises(ConfigError, match="it has 300 tokens, this one 259"):
    evaluate(larger, trained.config.data, "validation")


def test_another_vocabulary_of_the_same_size_is_refused(trained):
  other = dataclasses.replace(trained, vocabulary=trained.vocabulary | {"fingerprint": "x"})
  with pytest.raises(ConfigError, match=r"expected the checkpoint's vocabulary, bytes$"):
    evaluate(other, trained.config.data, "validation")


def test_gzip_needs_next_to_nothing_for_one_repeated_letter(tmp_path, corpus):
  data = tiny_config(corpus).data
  (tmp_path / "same.txt").write_text("a" * 100_000)
  source = dataclasses.replace(data.source, validation_path=str(tmp_path / "same.txt"))
  same = dataclasses.replace(data, source=source)
  assert gzip_bits_per_byte(same) < 0.02
  assert 1 < gzip_bits_per_byte(data) < 8


def test_experts_per_token_are_one_line_per_layer():
  shares = [0.5, 0.25, 0.25, 0.0, 0.0, 0.0]
  lines = experts_per_token_lines({"encoder/layer_1/experts_per_token": shares, "encoder/layer_1/dropped": 0.5})
  assert len(lines) == 2 and "encoder/layer_1" in lines[1] and lines[1].count("%") == 6 and "50.0%" in lines[1]
  assert experts_per_token_lines({"loss": 1.0}) == []
