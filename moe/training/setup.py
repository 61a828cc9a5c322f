"""What a config trains with: optimizer, state and step, for a run, its plan and its benchmark; and whether it fits."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from moe.config import ConfigError
from moe.parallel.memory import GIB, device_memory, host_memory, shard_bytes
from moe.parallel.mesh import row_shards
from moe.training.experiment import ExperimentConfig
from moe.training.state import Stored, TrainState, abstract_model, abstract_state, keys, make_state
from moe.training.step import RunInputs, make_eval_step, make_train_step


class Setup:
  """A config on a mesh. No model is computed or allocated before `first_state`; steps compile when first called.

  Attributes:
    mesh: of the devices that hold all arrays.
    graph: the model's structure.
    optimizer: Optax's transformation.
    abstract: shapes, dtypes and shardings of the state.

  Raises:
    ConfigError: the mesh does not divide the model or the batch.
  """

  def __init__(self, config: ExperimentConfig, mesh: Mesh):
    config.check_mesh(mesh)
    self._config, self.mesh = config, mesh
    self._key = np.asarray(jax.random.key_data(keys(config.seed)[1]))
    self._schedule = config.optimizer.make_schedule(config.train.steps)
    model = abstract_model(config.model.make, mesh, fsdp=config.mesh.fsdp)
    self.graph = model.graph
    self.optimizer = config.optimizer.make(model.stacked)
    self.abstract = abstract_state(model, self.optimizer, mesh)

  def first_state(self, stored: Stored) -> TrainState:
    """The state at step 0; `stored` is from `stored_router_state`."""
    return make_state(self._config.model.make, self.optimizer, self._config.seed, self.abstract, stored)

  def train_step(self, byte_lengths: jax.typing.ArrayLike) -> jax.stages.Wrapped:
    """`make_train_step` of the config; `byte_lengths` `[V]` is the length of each token's text."""
    train = self._config.train
    return make_train_step(
      self.graph,
      self.abstract,
      self.optimizer,
      accumulation=train.accumulation,
      logits_z_loss=train.logits_z_loss,
      byte_lengths=byte_lengths,
    )

  def inputs(self, step: int) -> RunInputs:
    """What the train step takes beside state and batch, after `step` updates."""
    return RunInputs(self._key, np.float32(self._schedule(step)))

  def eval_step(self, byte_lengths: jax.typing.ArrayLike) -> Callable[..., dict[str, Any]]:
    """`make_eval_step` of the config."""
    accumulation = self._config.train.accumulation
    return make_eval_step(self.graph, byte_lengths, accumulation=accumulation, mesh=self.mesh)


def check_memory(config: ExperimentConfig, mesh: Mesh, abstract: TrainState | None = None) -> None:
  """Refuses what cannot fit, in seconds: from the sizes of the config, and exactly from the shapes of the state.

  Only what every step needs is counted: the state with the gradients; the logits; the arrays of a batch on the host.

  Args:
    config: of the run.
    mesh: of the devices.
    abstract: the state's shapes and shardings; without them a lower bound, in Python's integers, which never overflow.

  Raises:
    ConfigError: the memory of a device or of the host is less; names the field that could be smaller, and how small.
  """
  sizes = _sizes(config)
  least = 8 * _parameters(config, sizes) // mesh.size  # float32, once more for the gradients
  needed = least if abstract is None else shard_bytes(abstract) + shard_bytes(abstract.params)
  batch = config.data.batch_size
  logits = 4 * batch // config.train.accumulation * config.data.targets_length * config.model.vocab_size
  logits //= row_shards(mesh) * mesh.shape["model"]
  arrays = 16 * batch * (config.data.inputs_length + config.data.targets_length) // jax.process_count()
  memory = device_memory(mesh)
  if memory is not None and needed > memory:
    what = f"parameters, gradients and optimizer state need at least {needed / GIB:,.1f} GiB per device"
    field, value, fitting = _smaller(config, sizes, memory * least // needed * mesh.size // 8)
    raise ConfigError(field, value, f"expected {fitting}: {what}, this one has {memory / GIB:,.1f}")
  for bytes_, limit, what in (
    (logits, memory, "the logits of a micro-batch need at least {} GiB per device, this one has {}"),
    (arrays, host_memory(), "the arrays of a batch need at least {} GiB, this host has {}"),
  ):
    if limit is not None and bytes_ > limit:
      said = what.format(f"{bytes_ / GIB:,.1f}", f"{limit / GIB:,.1f}")
      raise ConfigError("config.data.batch_size", batch, f"expected at most about {batch * limit // bytes_}: {said}")


def _sizes(config: ExperimentConfig) -> dict[str, int]:
  """The fields of the model that could be smaller."""
  model = config.model
  sizes = {name: getattr(model, name) for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_head")}
  for name, stack in model.stacks.items():
    sizes[f"{name}.layers"] = stack.layers
    if stack.moe is not None:
      sizes |= {f"{name}.moe.num_experts": stack.moe.num_experts, f"{name}.moe.d_ff": stack.moe.d_ff}
  return sizes


def _parameters(config: ExperimentConfig, sizes: dict[str, int]) -> int:
  """A lower bound on the model's parameters with these sizes: embeddings, attention, feed-forward networks."""
  width, total = sizes["d_model"], sizes["vocab_size"] * sizes["d_model"]
  for name, stack in config.model.stacks.items():
    layers, experts = sizes[f"{name}.layers"], sizes.get(f"{name}.moe.num_experts", 0)
    sparse = -(-layers * sum(stack.has_experts) // stack.layers)  # rounded up
    hidden = sizes.get(f"{name}.moe.d_ff") or sizes["d_ff"]
    total += 4 * layers * width * sizes["num_heads"] * sizes["d_head"]
    total += 2 * width * ((layers - sparse) * sizes["d_ff"] + sparse * experts * hidden)
  return total


def _smaller(config: ExperimentConfig, sizes: dict[str, int], parameters: int) -> tuple[str, int, str]:
  """The field that has to shrink least for the model to have so few parameters, its value, and what would fit."""
  found = []
  for name, value in sizes.items():
    smaller = value
    while smaller > 1 and _parameters(config, sizes | {name: smaller}) > parameters:
      smaller //= 2
    if value and _parameters(config, sizes | {name: smaller}) <= parameters:
      found.append((value // smaller, name, value, smaller))
  if not found:
    return "config.model.d_model", sizes["d_model"], f"a model of at most about {parameters:,} parameters"
  _, name, value, smaller = min(found)
  return f"config.model.{name}", value, f"at most about {smaller} with all else as it is"
