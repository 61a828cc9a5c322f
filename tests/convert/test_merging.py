"""Means of experts and of checkpoints, against NumPy's."""

import jax
import numpy as np
import pytest

from moe.convert.layers import split_layers
from moe.convert.merging import mean_of, merge_experts
from tests.convert.test_upcycling import CHOICE, DENSE, PLACEMENTS, TOP2, assert_equal, parameters, sparse, upcycle
from tests.models.tiny import config, stack


@pytest.mark.parametrize("experts", [2, 3, 7])
def test_experts_that_are_still_copies_merge_into_the_dense_model_bit_for_bit(experts):
  dense = config(decoder=DENSE)
  listed = sparse(placement=PLACEMENTS["listed"], num_experts=experts)
  model = config(encoder=stack(CHOICE, feed_forward="geglu"), decoder=listed)
  params = upcycle(parameters(dense)[1], parameters(model, 1)[1], model)
  assert_equal(merge_experts(params, model), parameters(dense)[1])


def test_biases_that_are_still_copies_merge_into_the_dense_models():
  dense = config("decoder", DENSE, bias=True)
  model = config("decoder", sparse(placement=PLACEMENTS["listed"], bias=True), bias=True)
  params = upcycle(parameters(dense)[1], parameters(model, 1)[1], model)
  assert_equal(merge_experts(params, model), parameters(dense)[1])


@pytest.mark.parametrize("chosen", [None, [[0, 2], [1, 3]], [[3], [0]]], ids=["all", "two", "one"])
def test_a_dense_network_has_the_means_of_the_chosen_experts_matrices(chosen):
  model = config("decoder", sparse(TOP2, PLACEMENTS["every_second"]))
  params = parameters(model)[1]
  made = merge_experts(params, model, chosen and {"decoder": np.array(chosen)})
  before, after = (
    split_layers(each["decoder"], of.has_experts) for each, of in ((params, model.decoder), (made, DENSE))
  )
  assert_equal(after[::2], before[::2])
  for layer, numbers in zip((1, 3), chosen or [[0, 1, 2, 3]] * 2):
    experts, network = before[layer]["moe"]["experts"], after[layer]["feed_forward"]
    assert network.keys() == experts.keys()
    for name in network:
      mean = np.mean(np.asarray(experts[name], np.float64)[numbers], axis=0)
      np.testing.assert_allclose(network[name], mean.T if name == "down" else mean, atol=1e-6)


def test_the_mean_of_checkpoints_is_numpys():
  trees = [parameters(config("decoder", DENSE), seed)[1] for seed in range(3)]
  expected = jax.tree.map(lambda *each: np.mean(np.asarray(each, np.float64), axis=0).astype(np.float32), *trees)
  assert_equal(mean_of(iter(trees)), expected)


def test_the_mean_of_equal_checkpoints_is_each_of_them():
  tree = parameters(config("decoder", DENSE))[1]
  assert_equal(mean_of([tree] * 3), tree)
