"""The model section of a config, and every check across its fields."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from moe.config import require
from moe.nn.activations import Form
from moe.routing import RouterConfig, Site


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture and sizes.

  A stack (encoder or decoder) with a router has a MoE layer instead of the dense feed-forward network in the last of
  every `moe_every` blocks; a stack without one is dense.

  Attributes:
    architecture: "encoder_decoder" is T5 1.1; "decoder" the language model of Zhou et al. 2022.
    d_ff: hidden width of dense feed-forward networks.
    encoder_layers: 0 for a decoder.
    feed_forward: form of the dense networks.
    num_experts: 0 for a dense model.
    expert_d_ff: hidden width of an expert; 0 means `d_ff`.
    expert_feed_forward: form of an expert.
    shared_experts: experts besides, in every MoE layer, that see every token whatever the router says.
    encoder_router: None for a dense encoder.
    decoder_router: None for a dense decoder.
    relative_bias: one table of position biases for a stack (T5), or one a layer (Zhou et al. 2022).
    relative_buckets: rows of such a table.
    relative_max_distance: tokens; farther ones share a bucket.
    tie_embeddings: logits are products with the input embedding, scaled by `d_model ** -0.5`.
    dropout: probability, in training only.
    dtype: of computation; parameters and logits are float32 always.
    remat: what the backward pass computes anew in each unit of blocks: nothing, all but matrix products, all.
    allow_future_leakage: accept a decoder router that is not causal; the loss is then not a language model's.
  """

  architecture: Literal["encoder_decoder", "decoder"]
  vocab_size: int
  d_model: int
  d_ff: int
  num_heads: int
  d_head: int
  decoder_layers: int
  encoder_layers: int = 0
  feed_forward: Form = "geglu"
  num_experts: int = 0
  expert_d_ff: int = 0
  expert_feed_forward: Form = "gelu"
  shared_experts: int = 0
  moe_every: int = 2
  encoder_router: RouterConfig | None = None
  decoder_router: RouterConfig | None = None
  relative_bias: Literal["shared", "per_layer"] = "shared"
  relative_buckets: int = 32
  relative_max_distance: int = 128
  tie_embeddings: bool = True
  dropout: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  remat: Literal["none", "dots", "full"] = "none"
  allow_future_leakage: bool = False

  def __post_init__(self):
    for name in ("vocab_size", "d_model", "d_ff", "num_heads", "d_head", "decoder_layers", "moe_every"):
      require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
    for name in ("num_experts", "expert_d_ff", "shared_experts", "encoder_layers"):
      require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
    require(0 <= self.dropout < 1, "dropout", self.dropout, "must be in [0, 1)")
    self._check_encoder()
    self._check_relative_positions()
    self._check_experts()
    self._check_causality()

  @property
  def compute_dtype(self) -> jnp.dtype:
    """`dtype` as JAX's."""
    return jnp.dtype(self.dtype)

  @property
  def site(self) -> Site:
    """Where a router of this model stands."""
    return Site(self.d_model, self.num_experts, self.vocab_size)

  @property
  def leaks_future(self) -> bool:
    """Whether a target's logits may depend on later tokens, in training or evaluation: every result must say so."""
    router = self.decoder_router
    return router is not None and not (router.is_causal(training=True) and router.is_causal(training=False))

  @property
  def evaluates_on_future(self) -> bool:
    """Whether they do so in evaluation: then the model cannot decode."""
    return self.decoder_router is not None and not self.decoder_router.is_causal(training=False)

  def check_mesh(self, mesh: Mesh) -> None:
    """Raises `ConfigError` unless what the mesh divides can be divided evenly."""
    experts = ("num_experts",)
    widths = ("num_heads", "vocab_size", "d_ff", "expert_d_ff")
    for axis, names in {"expert": experts, "model": widths}.items():
      for name in names:
        value, size = getattr(self, name), mesh.shape[axis]
        require(value % size == 0, f"config.model.{name}", value, f"must be a multiple of the mesh's {axis} = {size}")

  def _check_encoder(self):
    if self.architecture == "decoder":
      require(self.encoder_layers == 0, "encoder_layers", self.encoder_layers, 'must be 0 for architecture "decoder"')
      unused = self.encoder_router is None
      require(unused, "encoder_router", _name(self.encoder_router), 'must be None for architecture "decoder"')
    else:
      layers = self.encoder_layers
      require(layers >= 1, "encoder_layers", layers, 'must be at least 1 for architecture "encoder_decoder"')

  def _check_relative_positions(self):
    buckets, distance = self.relative_buckets, self.relative_max_distance
    require(buckets >= 4 and buckets % 4 == 0, "relative_buckets", buckets, "must be a positive multiple of 4")
    nearest = f"must be more than relative_buckets / 2 = {buckets // 2}, whose distances have a bucket each"
    require(distance > buckets // 2, "relative_max_distance", distance, nearest)

  def _check_experts(self):
    routers = {"encoder": self.encoder_router, "decoder": self.decoder_router}
    used = [f"{side}_router" for side, router in routers.items() if router is not None]
    if not used:
      experts = self.num_experts
      require(experts == 0, "num_experts", experts, "must be 0 without encoder_router or decoder_router")
      shared = self.shared_experts
      require(shared == 0, "shared_experts", shared, "must be 0 without encoder_router or decoder_router")
    else:
      require(self.num_experts >= 1, "num_experts", self.num_experts, f"must be at least 1: {' and '.join(used)} given")
    for side, router in routers.items():
      layers, every = getattr(self, f"{side}_layers"), self.moe_every
      whole = router is None or layers % every == 0
      require(whole, f"{side}_layers", layers, f"must be a multiple of moe_every = {every}, as {side}_router is given")

  def _check_causality(self):
    advice = (
      "is not causal: a token's output would depend on later tokens; choose a causal router,"
      " or set allow_future_leakage=True to train anyway with a loss that is not a language model's"
    )
    accepted = not self.leaks_future or self.allow_future_leakage
    require(accepted, "decoder_router.name", _name(self.decoder_router), advice)


def _name(router: RouterConfig | None) -> str | None:
  return None if router is None else router.name
