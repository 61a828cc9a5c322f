"""What a config trains with: optimizer, state and step, for a run, its plan and its benchmark; and whether it fits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.config import ConfigError, in_section
from moe.parallel.memory import GIB, device_memory, host_memory, shard_bytes
from moe.parallel.mesh import row_shards
from moe.parallel.programs import program
from moe.training.experiment import ExperimentConfig
from moe.training.optimization.parts import by_path, expert_axes_of
from moe.training.optimization.schedule import Constant
from moe.training.state import Stored, TrainState, abstract_model, abstract_state, keys, make_init, shardings_of
from moe.training.step import RunInputs, make_eval_step, make_train_step


class Setup:
  """A config on a mesh. No model is computed or allocated before `first_state`; steps compile when first called.

  Attributes:
    mesh: of the devices that hold all arrays.
    graph: the model's structure.
    optimizer: Optax's transformation.
    abstract: shapes, dtypes and shardings of the state.

  Raises:
    ConfigError: the mesh does not divide the model or the batch; or what is to be frozen is nothing, or everything.
  """

  def __init__(self, config: ExperimentConfig, mesh: Mesh):
    config.check_mesh(mesh)
    self._config, self.mesh = config, mesh
    self._key = np.asarray(jax.random.key_data(keys(config.seed)[1]))
    self._kl_loss = config.init.kl_loss if config.init is not None else 0.0
    self._schedule = config.optimizer.make_schedule(config.train.steps)
    model = abstract_model(config.model.make, mesh, fsdp=config.mesh.fsdp)
    arrays = by_path([model.params, model.router_state])
    axes = expert_axes_of(config.model, arrays) if config.optimizer.freezes_experts else {}
    with in_section("config.optimizer"):
      experts = {path: arrays[path].shape[axis] for path, axis in axes.items()}
      config.optimizer.check_frozen(model.params, model.router_state, experts)
    self._frozen_experts = {
      path: _first(config.optimizer.frozen_experts(path), axis, arrays[path].shape) for path, axis in axes.items()
    }
    self.graph = model.graph
    self.optimizer = config.optimizer.make(model.stacked)
    self.abstract = abstract_state(model, self.optimizer, mesh)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1.0, schedule=Constant())  # arguments of the step
    self._made_of = config.model, optimizer, config.mesh, mesh

  def first_state(self, stored: Stored) -> TrainState:
    """The state at step 0; `stored` is from `stored_router_state`."""
    init = functools.partial(make_init, self._config.model.make, self.optimizer, self.abstract, stored)
    return (init() if stored else program(("init", *self._made_of), init))(keys(self._config.seed)[0])

  def state_of(self, params: dict[str, Any], router_state: dict[str, Any]) -> TrainState:
    """The state at step 0 of a model that was trained elsewhere, whose arrays have the shardings of `abstract`."""

    def begin(params: dict[str, Any]) -> tuple[jax.Array, Any]:
      return jnp.zeros((), jnp.int32), self.optimizer.init(params)

    divided = shardings_of((self.abstract.step, self.abstract.opt_state))
    step, opt_state = jax.jit(begin, out_shardings=divided)(params)
    return TrainState(step, params, router_state, opt_state)

  def train_step(self, byte_lengths: jax.typing.ArrayLike) -> jax.stages.Wrapped:
    """`make_train_step` of the config; `byte_lengths` `[V]` is the length of each token's text."""
    train = self._config.train
    make = functools.partial(
      make_train_step,
      self.graph,
      self.abstract,
      self.optimizer,
      accumulation=train.accumulation,
      logits_z_loss=train.logits_z_loss,
      byte_lengths=byte_lengths,
      kl_loss=self._kl_loss,
      frozen=self.frozen,
    )
    numbers = train.accumulation, train.logits_z_loss, self._kl_loss, np.asarray(byte_lengths).tobytes()
    return program(("train step", *self._made_of, *numbers), make)

  def frozen(self, path: str) -> bool | np.ndarray:
    """Whether the parameter, or the router's state, of this path stays as it is; or where, if that is a part of it."""
    return self._config.optimizer.is_frozen(path) or self._frozen_experts.get(path, False)

  def inputs(self, step: int, source: tuple[dict[str, Any], dict[str, Any]] | None = None) -> RunInputs:
    """What the train step takes beside state and batch, after `step` updates; without a source its shapes will do."""
    if source is None and self._kl_loss:
      source = self.abstract.params, self.abstract.router_state
    return RunInputs(self._key, np.float32(self._schedule(step)), source)

  def eval_step(self, byte_lengths: jax.typing.ArrayLike) -> Callable[..., dict[str, Any]]:
    """`make_eval_step` of the config."""
    accumulation = self._config.train.accumulation
    return make_eval_step(self.graph, byte_lengths, accumulation=accumulation, mesh=self.mesh)


def _first(number: int, axis: int, shape: tuple[int, ...]) -> bool | np.ndarray:
  """A mask of the first so many places along an axis, that fits an array of this shape; False if there are none."""
  if not number:
    return False
  return (np.arange(shape[axis]) < number).reshape([-1 if a == axis else 1 for a in range(len(shape))])


def check_memory(config: ExperimentConfig, mesh: Mesh, abstract: TrainState | None = None) -> None:
  """Refuses what cannot fit, in seconds: from the sizes of the config, and exactly from the shapes of the state.

  Only what every step needs is counted: the state and the gradients; the logits; one layer's attention; the batch.

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
  if abstract is not None and config.init is not None and config.init.kl_loss:
    needed += shard_bytes(abstract.params)  # the source's
  memory = device_memory(mesh)
  if memory is not None and needed > memory:
    what = f"parameters, gradients and optimizer state need at least {needed / GIB:,.1f} GiB per device"
    field, value, fitting = _smaller(config, sizes, memory * least // needed * mesh.size // 8)
    raise ConfigError(field, value, f"expected {fitting}: {what}, this one has {memory / GIB:,.1f}")
  check_batch(config, mesh)


def check_batch(config: ExperimentConfig, mesh: Mesh) -> None:
  """Refuses batches whose arrays, logits or attention cannot fit; rows of which not even one would, by their length.

  Raises:
    ConfigError: as `check_memory`.
  """
  data, model = config.data, config.model
  lengths = {"inputs_length": data.inputs_length, "targets_length": data.targets_length}
  longest, both = max(lengths, key=lambda name: lengths[name]), sum(lengths.values())
  attended = both if model.row_format == "targets" else lengths[longest]
  rows, shards = data.batch_size // config.train.accumulation, row_shards(mesh) * mesh.shape["model"]
  logits = 4 * rows * data.targets_length * model.vocab_size // shards
  attention = model.compute_dtype.itemsize * rows * model.num_heads * attended**2 // shards
  arrays = 16 * data.batch_size * both // jax.process_count()
  limits = {"device": device_memory(mesh), "host": host_memory()}
  # The last number: with which power of the length the need grows.
  for what, where, needed, length, power in (
    ("logits of a micro-batch", "device", logits, "targets_length", 1),
    ("attention weights of a layer", "device", attention, longest, 2),
    ("arrays of a batch", "host", arrays, longest, 1),
  ):
    limit = limits[where]
    if limit is None or needed <= limit:
      continue
    field, value, fitting = "batch_size", data.batch_size, data.batch_size * limit // needed
    if fitting < row_shards(mesh) * (config.train.accumulation if where == "device" else 1):
      field, value = length, lengths[length]
      fitting = int(value * (limit / needed) ** (1 / power))
    need = f"the {what} need at least {needed / GIB:,.1f} GiB per {where}, this one has {limit / GIB:,.1f}"
    raise ConfigError(f"config.data.{field}", value, f"expected at most about {fitting}: {need}")


def _sizes(config: ExperimentConfig) -> dict[str, int]:
  """The fields of the model that could be smaller."""
  model = config.model
  sizes = {name: getattr(model, name) for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_head")}
  sizes["relative_buckets"] = model.relative_buckets
  for name, stack in model.stacks.items():
    sizes[f"{name}.layers"] = stack.layers
    if stack.moe is not None:
      for field in ("num_experts", "d_ff", "shared_experts"):
        sizes[f"{name}.moe.{field}"] = getattr(stack.moe, field)
    if stack.depth is not None:
      sizes[f"{name}.depth.predictor_width"] = stack.depth.predictor_width
  return sizes


def _parameters(config: ExperimentConfig, sizes: dict[str, int]) -> int:
  """A lower bound on the model's parameters with these sizes: embeddings, attention, feed-forward networks."""
  width = sizes["d_model"]
  total = sizes["vocab_size"] * width + sizes["relative_buckets"] * sizes["num_heads"] * len(config.model.stacks)
  for name, stack in config.model.stacks.items():
    layers = sizes[f"{name}.layers"]
    experts = sizes.get(f"{name}.moe.num_experts", 0) + sizes.get(f"{name}.moe.shared_experts", 0)
    sparse = -(-layers * sum(stack.has_experts) // stack.layers)  # rounded up
    hidden = sizes.get(f"{name}.moe.d_ff") or sizes["d_ff"]
    passable = layers * sum(kind.passable for kind in stack.kinds) // stack.layers
    total += 4 * layers * width * sizes["num_heads"] * sizes["d_head"]
    total += passable * width * sizes.get(f"{name}.depth.predictor_width", 0)
    total += 2 * width * ((layers - sparse) * sizes["d_ff"] + sparse * experts * hidden)
  return total


def _smaller(config: ExperimentConfig, sizes: dict[str, int], parameters: int) -> tuple[str, int, str]:
  """The largest field that alone can make the model have so few parameters, its value, and what would fit."""
  for value, name in sorted(((value, name) for name, value in sizes.items()), reverse=True):
    smaller = value
    while smaller > 1 and _parameters(config, sizes | {name: smaller}) > parameters:
      smaller //= 2
    if smaller < value and _parameters(config, sizes | {name: smaller}) <= parameters:
      return f"config.model.{name}", value, f"at most about {smaller} with all else as it is"
  return "config.model.d_model", sizes["d_model"], f"a model of at most about {parameters:,} parameters"
