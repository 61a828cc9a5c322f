"""A model with more experts: what it computes at first, what its new experts are, and which routers are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import ConfigError
from moe.convert.growing import grow_experts
from moe.convert.layers import split_layers
from moe.convert.new_config import grown_config
from moe.convert.runs import grow_run
from moe.evaluation.restore import restore
from moe.models.placement import Listed
from moe.parallel.mesh import make_mesh, put_batch
from moe.training.experiment import load_config
from moe.training.optimization.parts import by_path
from moe.training.setup import Setup
from moe.training.state import merge
from moe.training.workdir import Workdir
from tests.convert.test_runs import untrained
from tests.convert.test_upcycling import assert_equal, parameters
from tests.models.tiny import batch, config, logits, router, stack
from tests.slow import first_ones
from tests.training.tiny import tiny_decoder, tiny_mapping

ROUTERS = {
  "loss_free": router("loss_free"),
  "renormalized": router("loss_free", renormalize=True, router_bias=True),
  "quantile_balanced": router("quantile_balanced"),
  "deepseek_v3": router("deepseek_v3", expert_groups=1, chosen_groups=1),
  "relu": router("relu"),
  "noisy_rectifier": router("noisy_rectifier"),
  "stochastic_times_smooth": router("stochastic_times_smooth"),
  "threshold": router("threshold", gate="sigmoid", slack=None),
}


def model(router, experts):
  return config("decoder", stack(router, layers=3, placement=Listed((0, 2)), bias=True, num_experts=experts))


def drawn(tree, seed=2):
  """Routers' states after some training: biases, thresholds and the like, between 0 and 1."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(draw.uniform(size=leaf.shape), leaf.dtype), tree)


@pytest.mark.parametrize("name", first_ones(2, ROUTERS))
def test_a_grown_model_computes_what_the_old_one_did_and_its_new_experts_can_learn(name):
  """More than twice as many, so that some old experts have two copies."""
  old, new = model(ROUTERS[name], 4), model(ROUTERS[name], 9)
  graph, params, state = parameters(old)
  state = drawn(state)
  grown, learnt = (grow_experts(each, old, new) for each in (params, state))
  before = logits(merge(graph, params, state), batch())
  after = logits(merge(parameters(new)[0], grown, learnt), batch())
  assert np.abs(before).max() > 0.1
  np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max(), rtol=0)
  for tree, bigger in ((params, grown), (state, learnt)):
    first = [
      leaf if leaf.shape == one.shape else jnp.take(leaf, np.arange(4), axis=_changed(leaf, one))
      for one, leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(bigger))
    ]
    assert_equal(first, jax.tree.leaves(tree))


def _changed(leaf, one):
  return next(axis for axis, (ours, theirs) in enumerate(zip(leaf.shape, one.shape)) if ours != theirs)


def test_new_experts_are_copies_in_turn_that_no_token_chooses_at_first():
  """Behind the lowest of the old biases by as much as a score can be higher."""
  old, new = model(ROUTERS["loss_free"], 4), model(ROUTERS["loss_free"], 9)
  _, params, state = parameters(old)
  state = drawn(state)
  grown, learnt = (_moe(grow_experts(each, old, new)) for each in (params, state))
  for layer, bias in zip(grown, learnt):
    turn = [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert_equal(layer["router"]["kernel"], layer["router"]["kernel"][:, turn])
    assert_equal(layer["experts"]["down"], layer["experts"]["down"][np.array(turn)])
    held = bias["router"]["bias"]
    assert held[4:].tolist() == [float(held[:4].min() - 1)] * 5


def test_experts_that_decide_for_themselves_are_silent_at_first():
  old, new = model(ROUTERS["relu"], 3), model(ROUTERS["relu"], 6)
  for layer in _moe(grow_experts(parameters(old)[1], old, new)):
    experts = layer["experts"]
    np.testing.assert_array_equal(experts["down"][3:], 0.0)
    np.testing.assert_array_equal(experts["biases"]["down"][3:], 0.0)
    assert_equal(experts["up"][3:], experts["up"][:3])


def _moe(variables):
  return [layer["moe"] for layer in split_layers(variables["decoder"], (True, False, True)) if "moe" in layer]


def mapping(corpus, **options):
  tree = tiny_mapping(corpus)
  return tree | {"model": tiny_decoder(tree, {"name": "loss_free", **options})}


@pytest.fixture(scope="module")
def old(corpus, tmp_path_factory):
  return untrained(mapping(corpus), tmp_path_factory.mktemp("old") / "run")


EIGHT = ("model.decoder.moe.num_experts", 8)


@pytest.mark.parametrize(
  ("options", "fields", "message"),
  [
    ({}, [], r"model.decoder.moe.num_experts = 4: expected more than the 4 experts there are"),
    ({}, [("model.decoder.moe.num_experts", 3)], r"num_experts = 3: expected at least 4, the experts of the run"),
    ({}, [EIGHT, ("mesh.expert", 3)], r"num_experts = 8: expected a multiple of config.mesh.expert = 3"),
    ({}, [EIGHT, ("model.d_ff", 64)], r"model.d_ff = 64: expected 32, as in the run it is made of"),
    ({}, [EIGHT, ("model.vocab_size", 300)], r"model.vocab_size = 300: expected 259"),
    ({}, [("model.decoder.moe", None)], r"model.decoder.moe = None: expected experts"),
    ({}, [EIGHT, ("optimizer.frozen", ["moe/exprts@4"])], r"frozen\[0\] = 'moe/exprts@4': expected to be found in"),
    ({"scores": "softmax"}, [EIGHT], r"router.name = 'loss_free': expected one that leaves old experts their tokens"),
    ({"capacity_factor": 2.0}, [EIGHT], r"router.name = 'loss_free': expected one .* dropless"),
    ({"name": "glam"}, [EIGHT], r"router.name = 'glam': expected one that leaves old experts"),
    ({"name": "deepseek_v3"}, [EIGHT], r"router.name = 'deepseek_v3': expected one .* chosen_groups = expert_groups"),
  ],
)
def test_what_cannot_grow_is_refused_by_its_config_alone(options, fields, message, corpus):
  with pytest.raises(ConfigError, match=message):
    grown_config(load_config(mapping(corpus, **options)), fields)


def test_a_grown_run_begins_another_whose_old_experts_stay_bit_identical(old, tmp_path):
  """One step with weight decay: only the second half of the experts and of the router's columns moves."""
  grow_run(old, "latest", tmp_path / "grown", [EIGHT])
  before, grown = restore(old), restore(tmp_path / "grown")
  assert grown.config.model.decoder.moe.num_experts == 8 and grown.step == before.step == 0
  tree = Workdir(tmp_path / "grown").stored()
  tree["optimizer"] |= {"frozen": ["moe/(experts|router/kernel)@4"], "weight_decay": 0.1}
  setup = Setup(load_config(tree), make_mesh())
  state = setup.state_of(*jax.tree.map(jnp.copy, (grown.params, grown.router_state)))
  example = {name: np.asarray(array) for name, array in batch(4, 16).items() if not name.startswith("inputs")}
  step = setup.train_step(np.ones(259))
  for number in range(2):
    state, _ = step(state, put_batch(setup.mesh, example), setup.inputs(number))
  first, last = by_path(grown.params), by_path(state.params)
  for path in first:
    moved = np.asarray(first[path] != last[path])
    if "/experts/" in path:  # [layers, E, d, f]
      assert not moved[:, :4].any() and moved[:, 4:].any(axis=(2, 3)).all(), path
    elif path.endswith("router/kernel"):
      assert not moved[..., :4].any() and moved[..., 4:].all(), path
    else:
      assert moved.any(), path
