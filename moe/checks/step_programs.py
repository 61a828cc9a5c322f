"""The train step of a small language model as a program to be timed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.checks.layer_programs import Program
from moe.parallel.mesh import make_mesh, put_batch
from moe.planning import hlo
from moe.planning.costs import program_costs
from moe.training.experiment import ExperimentConfig, load_config
from moe.training.setup import Setup
from moe.training.state import TrainState


def small_config(
  *,
  d_model: int,
  d_ff: int,
  width: int,
  layers: int,
  batch: int,
  length: int,
  dtype: str = "float32",
  experts: int = 0,
  router: Mapping[str, Any] | None = None,
  mesh: Mapping[str, int] | None = None,
) -> ExperimentConfig:
  """The config of a decoder with experts in its second, fourth, ... block, or of its dense twin.

  Args:
    d_model: width of a token.
    d_ff: hidden width of an expert.
    width: hidden width of dense networks; `d_ff` times the experts per token gives blocks of equal activated FLOPs.
    layers: blocks.
    batch: rows per batch.
    length: T, tokens per row.
    dtype: of computation.
    experts: E; 0 for the twin.
    router: its options; None for the twin. It need not be causal, since the data are random.
    mesh: the mesh section.

  Raises:
    ConfigError: the sizes do not fit together.
  """
  moe = {"num_experts": experts, "d_ff": d_ff, "router": router}
  model = {
    "name": "decoder",
    "vocab_size": 2048,
    "d_model": d_model,
    "d_ff": width,
    "feed_forward": "gelu",
    "num_heads": max(1, d_model // 64),
    "d_head": 64,
    "decoder": {"layers": layers, "moe": moe if router else None},
    "dtype": dtype,
    "allow_future_leakage": True,
  }
  data = {
    "source": "standard_library",
    "objective": "causal_lm",
    "vocabulary": "bytes",
    "inputs_length": 0,
    "targets_length": length,
    "batch_size": batch,
  }
  sections = {"model": model, "data": data, "optimizer": {}, "train": {"steps": 1000}, "mesh": dict(mesh or {})}
  return load_config({"seed": 0} | sections)


class RunningStep:
  """A run without data: every call is the next step, on the same random tokens.

  Args:
    config: of the run.
    devices: of its mesh.
    compiler_options: for the step.

  Attributes:
    mesh: of the config, over the devices.
    state, metrics: after the last call; no metrics before the first.
    compiled: the step.
    flops: of the step's matrix products before optimization, multiplied by the trips of their loops; None on several
      devices, and if a trip count depends on data.

  Raises:
    ConfigError: the mesh does not divide the devices, the model or the batch.
  """

  def __init__(
    self,
    config: ExperimentConfig,
    devices: Sequence[jax.Device],
    compiler_options: Mapping[str, bool | str] | None = None,
  ):
    self.mesh = make_mesh(config.mesh, devices)
    setup = Setup(config, self.mesh)
    self._optimizer, self.state = setup.optimizer, setup.first_state({})
    self.metrics: dict[str, Any] = {}
    self._batch = put_batch(self.mesh, random_batch(config))
    self._inputs = setup.inputs(0)
    step = setup.train_step(np.ones(config.model.vocab_size, np.int32))
    lowered = step.lower(self.state, self._batch, self._inputs)
    self.flops = _product_flops(lowered) if self.mesh.size == 1 else None
    self.compiled = lowered.compile(dict(compiler_options or {}))

  def __call__(self) -> TrainState:
    self.state, self.metrics = self.compiled(self.state, self._batch, self._inputs)
    return self.state

  def update(self) -> Program:
    """The optimizer's part of the step alone, on a copy of the state."""

    def update(params, opt_state, grads):
      updates, opt_state = self._optimizer.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    params, opt_state = jax.tree.map(jnp.copy, (self.state.params, self.state.opt_state))
    arguments = (params, opt_state, params)
    return jax.jit(update).lower(*arguments).compile(), arguments


def random_batch(config: ExperimentConfig) -> dict[str, np.ndarray]:
  """A batch without padding, with one example per row."""
  batch = config.data.row_shape(config.model.row_format).empty(config.data.batch_size)
  draw = np.random.default_rng(config.seed)
  for name, value in batch.items():
    if name.endswith("_positions"):
      batch[name] = np.broadcast_to(np.arange(value.shape[1], dtype=value.dtype), value.shape)
    elif name.endswith("_segments") or name == "loss_weights":
      batch[name] = np.ones_like(value)
    else:
      batch[name] = draw.integers(2, config.model.vocab_size, value.shape, value.dtype)
  return batch


def _product_flops(lowered: jax.stages.Lowered) -> int | None:
  found = program_costs(hlo.parse(lowered.as_text("hlo")), devices=1)
  return found.flops if found.exact else None
