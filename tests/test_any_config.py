"""Whatever a config says, it trains or is refused in one line: every sampled config traces, or is one `ConfigError`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings

from moe.config import ConfigError, build
from moe.experts import MoE
from moe.parallel.mesh import make_mesh, rows
from moe.routing import RouterConfig
from moe.training.experiment import ExperimentConfig, load_config
from moe.training.setup import Setup
from tests.any_config import changed_trees, sections


@pytest.fixture
def bounded(pytestconfig):
  """Settings for so many examples, twenty times as many with `--slow`; the same ones in every run."""

  def bounded(examples: int) -> settings:
    examples *= 20 if pytestconfig.getoption("--slow") else 1
    return settings(
      max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )

  return bounded


EXPERT_CHOICE = {"num_experts": 4, "router": {"name": "expert_choice"}, "placement": {"name": "every_nth"}}
SWITCH = {"num_experts": 4, "router": {"name": "switch", "capacity_factor": 1.25}, "placement": {"name": "every_nth"}}
SIZES = {"vocab_size": 259, "d_model": 8, "d_ff": 16, "num_heads": 2, "d_head": 4}
TREES = {
  "encoder_decoder": {
    "model": {
      "name": "encoder_decoder",
      "encoder": {"layers": 2, "moe": EXPERT_CHOICE},
      "decoder": {"layers": 2, "moe": SWITCH},
    },
    "data": {"objective": {"name": "prefix_lm"}, "inputs_length": 8, "targets_length": 8},
  },
  "decoder": {
    "model": {"name": "decoder", "decoder": {"layers": 2, "moe": SWITCH}},
    "data": {"objective": {"name": "causal_lm"}, "inputs_length": 0, "targets_length": 8},
  },
}


def tree(architecture: str) -> dict:
  """A valid tree with every section in it."""
  base = TREES[architecture]
  data = {"source": {"name": "standard_library"}, "vocabulary": "bytes", "extra_ids": 0, "batch_size": 4}
  return {
    "seed": 0,
    "model": SIZES | base["model"],
    "data": data | base["data"],
    "train": {"steps": 4},
    "optimizer": {"name": "adafactor", "schedule": {"name": "constant"}},
    "mesh": {},
  }


def trace_training(config: ExperimentConfig) -> None:
  """Traces the train step and the evaluation of a config from shapes alone.

  Raises:
    ConfigError: the devices here do not fit the config's mesh.
  """
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  setup = Setup(config, mesh)
  one = config.data.row_shape(config.model.row_format).empty(1)
  batch = {
    name: jax.ShapeDtypeStruct((config.data.batch_size, *value.shape[1:]), value.dtype, sharding=rows(mesh))
    for name, value in one.items()
  }
  lengths = np.zeros(config.model.vocab_size, np.int32)
  jax.eval_shape(setup.train_step(lengths), setup.abstract, batch, setup.inputs(0))
  jax.eval_shape(setup.eval_step(lengths), setup.abstract.params, setup.abstract.router_state, batch)


def trace_layer(router: RouterConfig) -> None:
  """Traces a layer with this router, forward and backward, and its evaluation."""
  shape = (2, 16, 8)
  key = jax.random.key(0)

  def outputs(training: bool) -> jax.Array:
    layer = MoE(8, 4, 16, router, vocab_size=32, read_files=False, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)

    def loss(params, x):
      module = nnx.merge(graph, params, rest, copy=True)
      y, report = module(x, ids=jnp.zeros(shape[:2], jnp.int32), training=training, key=key)
      return y.sum() + report.auxiliary_loss

    x = jnp.zeros(shape)
    return jax.grad(loss)(params, x) if training else loss(params, x)

  jax.eval_shape(lambda: (outputs(True), outputs(False)))


@pytest.mark.parametrize("architecture", TREES)
def test_the_trees_that_the_fuzz_starts_from_train(architecture):
  trace_training(load_config(tree(architecture)))


@pytest.mark.parametrize("architecture", TREES)
def test_any_config_traces_or_is_refused_in_one_line(architecture, bounded):
  @bounded(20)
  @given(changed_trees(ExperimentConfig, tree(architecture)))
  def traces_or_is_refused(values):
    try:
      trace_training(load_config(values))
    except ConfigError as error:
      assert "\n" not in str(error) and str(error).startswith("config") and len(str(error)) < 2000

  traces_or_is_refused()


@pytest.mark.parametrize("name", sorted(RouterConfig.choices))
def test_any_options_of_a_router_trace_or_are_refused_in_one_line(name, bounded):
  @bounded(6)
  @given(sections(RouterConfig.choices[name], name))
  def traces_or_is_refused(values):
    try:
      trace_layer(build(RouterConfig, values, "router"))
    except ConfigError as error:
      assert "\n" not in str(error) and len(str(error)) < 2000

  traces_or_is_refused()
