"""The model section of a config: sizes that all architectures share, their stacks, and checks across fields."""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from moe.config import Choice, in_section, require
from moe.experts.exchange.soft import check_soft_group
from moe.models.placement import EveryNth, Placement
from moe.nn.activations import Form
from moe.nn.linear import T5_INIT, KernelInit
from moe.nn.norm import Norm
from moe.parallel.mesh import row_shards
from moe.routing import RouterConfig, Site
from moe.routing.methods.reinforce import ReinforceConfig
from moe.row_format import RowFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig:
  """The MoE layers of a stack.

  Attributes:
    num_experts: E.
    router: the one of every MoE layer of the stack.
    placement: which layers they are.
    d_ff: hidden width of an expert; 0 for the model's `d_ff`.
    feed_forward: activation of the experts.
    shared_experts: experts in each MoE layer that see every token, whatever the router says.
    bias: whether the routed experts have biases, before and after the activation.
    router_init_scale: factor of the router's initial matrices, whatever the method: 1 is the method's own.
    gate_scale: factor of the routed experts' sum, as if every gate were multiplied by it (DeepSeek-V3's routed scaling
      factor). The gates of expert choice start at about 1/E, so that E / c gives the branch its usual size.
  """

  num_experts: int
  router: RouterConfig
  placement: Placement = dataclasses.field(default_factory=EveryNth)
  d_ff: int = 0
  feed_forward: Form = "gelu"
  shared_experts: int = 0
  bias: bool = False
  router_init_scale: float = 1.0
  gate_scale: float = 1.0

  def __post_init__(self):
    for name in ("router_init_scale", "gate_scale"):
      require(getattr(self, name) > 0, name, getattr(self, name), "expected more than 0")
    for name, least in (("num_experts", 1), ("d_ff", 0), ("shared_experts", 0)):
      require(getattr(self, name) >= least, name, getattr(self, name), f"expected at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthConfig:
  """The blocks of a decoder that tokens may pass by: Mixture-of-Depths (`moe.models.depth`).

  Attributes:
    capacity: share of a row's tokens that such a block takes in training, rounded up. The paper's best is 1/8.
    every: the last of every so many blocks is one. The paper's best is 2; 1 makes all of them such blocks.
    predictor_width: hidden units of the network that predicts in evaluation whether a token is taken.
  """

  capacity: float = 0.125
  every: int = 2
  predictor_width: int = 64

  def __post_init__(self):
    require(0 < self.capacity < 1, "capacity", self.capacity, "expected more than 0 and less than 1")
    for name in ("every", "predictor_width"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")

  def tokens(self, length: int) -> int:
    """k, how many tokens of a row of this length a block takes in training."""
    return math.ceil(Fraction(str(self.capacity)) * length)


class LayerKind(NamedTuple):
  """What a layer is.

  Attributes:
    experts: whether it is a MoE layer.
    passable: whether tokens may pass it by.
  """

  experts: bool
  passable: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
  """An encoder or a decoder.

  Attributes:
    layers: blocks, at most 1,000.
    moe: its MoE layers; None for a dense stack.
    depth: its blocks that tokens may pass by; None for a stack in which every token goes through all blocks.
  """

  layers: int
  moe: MoEConfig | None = None
  depth: DepthConfig | None = None

  def __post_init__(self):
    require(1 <= self.layers <= 1000, "layers", self.layers, "expected from 1 to 1000")
    if self.moe is not None:
      with in_section("moe.placement"):
        self.moe.placement.has_experts(self.layers)
    if self.depth is not None:
      every = self.depth.every
      require(self.layers % every == 0, "depth.every", every, f"expected a divisor of the {self.layers} layers")
      self._check_router()

  def _check_router(self) -> None:
    """Raises `ConfigError` if experts in a block that tokens may pass by have a router that does not work there."""
    if LayerKind(experts=True, passable=True) not in self.kinds:
      return
    name, where = self.router.name, "in a block that tokens may pass by"
    reads = f"expected a router that reads no token ids {where}: the token before may not be there"
    require(not self.router.reads_ids, "moe.router.name", name, reads)
    learns = f"expected a router that does not learn by REINFORCE {where}: the costs are those of all tokens"
    require(not isinstance(self.router, ReinforceConfig), "moe.router.name", name, learns)

  @property
  def has_experts(self) -> tuple[bool, ...]:
    """For each layer whether it is a MoE layer."""
    return (False,) * self.layers if self.moe is None else self.moe.placement.has_experts(self.layers)

  @property
  def kinds(self) -> tuple[LayerKind, ...]:
    """What each layer is."""
    every = self.depth.every if self.depth else self.layers + 1
    return tuple(LayerKind(has, number % every == 0) for number, has in enumerate(self.has_experts, start=1))

  def routed_lengths(self, length: int) -> set[int]:
    """How many tokens of a row of this length its routers are called with in training: fewer in a passable block."""
    passable = {kind.passable for kind in self.kinds if kind.experts}
    return {self.depth.tokens(length) if each and self.depth else length for each in passable}

  @property
  def router(self) -> RouterConfig | None:
    """The router of its MoE layers; None for a dense stack."""
    return None if self.moe is None else self.moe.router


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Choice):
  """An architecture and its sizes. Each one adds its stacks, as fields `encoder` and `decoder` of type `StackConfig`.

  The decoder predicts the tokens that it reads, so its router has to be causal.

  Attributes:
    d_ff: hidden width of dense feed-forward networks.
    feed_forward: activation of these.
    relative_bias: one table of position biases per stack (T5), or one per layer (Zhou et al. 2022); or "none".
    relative_buckets: rows of such a table.
    relative_max_distance: in tokens; larger distances share a bucket.
    tie_embeddings: logits are products with the input embedding, scaled by `d_model ** -0.5`.
    kernel_init: initialiser of the matrices of attention, feed-forward networks and experts.
    logits_operands: what the factors of this product are rounded to: the compute dtype, as in T5X, since it is one of
      the largest products, its sums are float32 either way, and rounding moves a logit of size 10 by about 0.02 in
      bfloat16; or "float32", for exact comparisons of losses, at several times the cost on accelerators.
    norm: T5's RMSNorm, or LayerNorm ("layer"), before each branch of a block and after the last.
    norm_epsilon: added to the mean square, or the variance, in every norm.
    bias: whether the matrices of attention and dense feed-forward networks have biases; T5's have not.
    dropout: probability, in training only.
    expert_dropout: probability that a hidden unit of an expert, routed or shared, is dropped; None for `dropout`.
      Switch Transformers are fine-tuned with 0.4, beside a dropout of 0.1 (Fedus et al. 2022).
    dtype: compute dtype; parameters and logits are always float32.
    remat: what the backward pass recomputes in each scanned unit of blocks: nothing, all but products with weights and
      weights that FSDP has gathered, all but products with weights, all.
    auxiliary_losses: whether the routers' weighted losses are the "sum" over all MoE layers of the model, so that each
      layer's pressure stays as the model grows deeper, or their "mean" (`docs/losses.md`). REINFORCE's policy loss is
      not among them.
    allow_future_leakage: accept a decoder whose router is not causal, or whose blocks tokens may pass by; the loss is
      then not a language model's: with the latter, that of training.
  """

  vocab_size: int
  d_model: int
  d_ff: int
  num_heads: int
  d_head: int
  feed_forward: Form = "geglu"
  relative_bias: Literal["shared", "per_layer", "none"] = "shared"
  relative_buckets: int = 32
  relative_max_distance: int = 128
  tie_embeddings: bool = True
  kernel_init: KernelInit = T5_INIT
  logits_operands: Literal["compute_dtype", "float32"] = "compute_dtype"
  norm: Norm = "rms"
  norm_epsilon: float = 1e-6
  bias: bool = False
  dropout: float = 0.0
  expert_dropout: float | None = None
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "dots_and_weights", "dots", "full"] = "none"
  auxiliary_losses: Literal["sum", "mean"] = "sum"
  allow_future_leakage: bool = False

  def __post_init__(self):
    for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_head"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "expected at least 1")
    require(self.norm_epsilon > 0, "norm_epsilon", self.norm_epsilon, "expected more than 0")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "expected at least 0 and less than 1")
    rate = self.expert_dropout
    require(rate is None or 0 <= rate < 1, "expert_dropout", rate, "expected at least 0 and less than 1, or None")
    others = set(self.stacks) - {"encoder", "decoder"}
    if others:
      raise TypeError(f"{type(self).__name__}.{min(others)}: expected stacks named encoder or decoder")
    for name, stack in self.stacks.items():
      wanted = "expected None: only a decoder has blocks that tokens may pass by"
      require(stack.depth is None or name == "decoder", f"{name}.depth", stack.depth, wanted)
    self._check_relative_positions()
    self._check_causality()

  def make(self, rngs: nnx.Rngs) -> nnx.Module:
    """The model, initialised from the stream `params` of `rngs`. Under `nnx.eval_shape` nothing is allocated."""
    raise NotImplementedError

  @property
  def row_format(self) -> RowFormat:
    """What the model reads: rows of inputs and of targets, of targets alone, or pictures."""
    raise NotImplementedError

  def stack_lengths(self, inputs_length: int, targets_length: int) -> dict[str, int]:
    """By stack name, the tokens that it reads from a row with inputs and targets of these lengths."""
    raise NotImplementedError

  @property
  def stacks(self) -> dict[str, StackConfig]:
    """The stacks by name, in the order of computation."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return {name: value for name, value in fields.items() if isinstance(value, StackConfig)}

  @property
  def auxiliary_scale(self) -> float:
    """What the loss of one MoE layer is multiplied by."""
    layers = sum(sum(stack.has_experts) for stack in self.stacks.values())
    return 1.0 if self.auxiliary_losses == "sum" else 1 / max(layers, 1)

  @property
  def compute_dtype(self) -> jnp.dtype:
    """`dtype` as a JAX dtype."""
    return jnp.dtype(self.dtype)

  def site(self, moe: MoEConfig) -> Site:
    """What the routers of a stack are made for."""
    return Site(self.d_model, moe.num_experts, self.vocab_size)

  @property
  def leaks_future(self) -> bool:
    """Whether a target's logits may depend on later tokens, in training or evaluation: what does must say so."""
    return self.trains_on_future or self.evaluates_on_future

  @property
  def trains_on_future(self) -> bool:
    """Whether they do so in training."""
    router = self.decoder_router
    return self._has_depth or (router is not None and not router.is_causal(training=True))

  @property
  def evaluates_on_future(self) -> bool:
    """Whether they do so in evaluation, so that the model cannot decode."""
    return self.decoder_router is not None and not self.decoder_router.is_causal(training=False)

  @property
  def _has_depth(self) -> bool:
    """Whether tokens may pass by blocks of the decoder. The choice looks at later tokens in training only."""
    return any(stack.depth is not None for stack in self.stacks.values())

  def with_decoder_router(self, router: RouterConfig) -> "ModelConfig":
    """The same model with another router in its decoder, which no longer accepts one that is not causal."""
    decoder = self.stacks["decoder"]
    changes: Any = {"decoder": dataclasses.replace(decoder, moe=dataclasses.replace(decoder.moe, router=router))}
    return dataclasses.replace(self, allow_future_leakage=self._has_depth, **changes)

  def check_batches(self, rows: int, inputs_length: int, targets_length: int) -> None:
    """Raises `ConfigError` if a router cannot divide training (micro-)batches of this shape into its groups."""
    for path, moe, length in self._routers(inputs_length, targets_length):
      with in_section(path):
        moe.router.check(self.site(moe), rows, length)

  def check_mesh(self, mesh: Mesh) -> None:
    """Raises `ConfigError` unless what the mesh divides can be divided evenly."""

    def divides(axis: str, field: str, value: int) -> None:
      size = mesh.shape[axis]
      require(value % size == 0, f"config.model.{field}", value, f"expected a multiple of the mesh's {axis} = {size}")

    for name in ("num_heads", "vocab_size", "d_ff"):
      divides("model", name, getattr(self, name))
    for name, stack in self.stacks.items():
      if stack.moe is not None:
        divides("expert", f"{name}.moe.num_experts", stack.moe.num_experts)
        divides("model", f"{name}.moe.d_ff", stack.moe.d_ff)

  def check_groups(self, mesh: Mesh, rows: int, inputs_length: int, targets_length: int) -> None:
    """Raises `ConfigError` if soft groups of (micro-)batches of this shape do not fit the mesh (`check_soft_group`).

    The batches may be of evaluation; their rows are a multiple of the mesh's.
    """
    for path, moe, length in self._routers(inputs_length, targets_length):
      with in_section(f"config.model.{path}"):
        if moe.router.is_soft:
          group = moe.router.groups(rows, length, training=False)  # those of training, if that can divide the batch
          check_soft_group(group.size, rows // row_shards(mesh) * length, mesh.shape["expert"])

  def _routers(self, inputs_length: int, targets_length: int) -> Iterator[tuple[str, MoEConfig, int]]:
    """The path of each stack's router, its layers' section, and how many tokens of a row they are given in training."""
    lengths = self.stack_lengths(inputs_length, targets_length)
    for name, stack in self.stacks.items():
      if stack.moe is not None:
        for length in stack.routed_lengths(lengths[name]):
          yield f"{name}.moe.router", stack.moe, length

  @property
  def decoder_router(self) -> RouterConfig | None:
    """The router of the stack named "decoder"; None if that is dense, or there is none."""
    decoder = self.stacks.get("decoder")
    return None if decoder is None else decoder.router

  def _check_relative_positions(self):
    buckets, distance = self.relative_buckets, self.relative_max_distance
    require(buckets >= 4 and buckets % 4 == 0, "relative_buckets", buckets, "expected a positive multiple of 4")
    nearest = f"expected more than relative_buckets / 2 = {buckets // 2}, whose distances have a bucket each"
    require(distance > buckets // 2, "relative_max_distance", distance, nearest)

  def _check_causality(self):
    advice = (
      "expected a causal router: with one that is not causal, a token's output depends on later tokens;"
      " set allow_future_leakage=True to train anyway with a loss that is not a language model's"
    )
    if self.allow_future_leakage:
      return
    router = self.decoder_router
    causal = router is None or (router.is_causal(training=True) and router.is_causal(training=False))
    require(causal, "decoder.moe.router.name", router and router.name, advice)
    wanted = (
      "expected True with decoder.depth: which tokens a block takes in training depends on later ones, so that the loss"
      " of training is not a language model's; that of evaluation is"
    )
    require(not self._has_depth, "allow_future_leakage", False, wanted)
