"""Vision Transformers (Dosovitskiy et al. 2021) as V-MoE and Soft MoE use them: patches of a picture are its tokens.

Riquelme et al. 2021, arXiv 2106.05974; Puigcerver et al. 2023, arXiv 2308.00951.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import in_section, require
from moe.models.block import Context
from moe.models.model_config import ModelConfig, MoEConfig, StackConfig
from moe.models.stack import Stack, StackOutput
from moe.models.types import Batch, ModelOutput
from moe.nn.activations import Form
from moe.nn.attention import segment_mask
from moe.nn.linear import matmul, normal, zeros
from moe.nn.norm import Norm
from moe.nn.streams import named_streams
from moe.parallel.sharding import whole
from moe.routing import Site
from moe.row_format import PictureFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(ModelConfig, name="vision"):
  """A Vision Transformer, whose only stack is `encoder`. Any router that reads no token ids may be in it.

  Nothing is predicted from what comes before, so a router need not be causal. A routing group is as the router says: a
  `group_size` of the picture's tokens is one picture, a multiple of it several.

  Attributes:
    vocab_size: classes.
    image_size: pixels of the height and of the width.
    patch_size: of a patch; divides `image_size`.
    channels: of a pixel.
    positions: embeddings of the patches' places, "learned" or the fixed "sincos" of two dimensions.
    pooling: what the classes are read from: an additional "class_token", or the "mean" over the patches.
  """

  feed_forward: Form = "gelu_exact"
  relative_bias: Literal["shared", "per_layer", "none"] = "none"
  tie_embeddings: bool = False
  norm: Norm = "layer"
  bias: bool = True

  encoder: StackConfig
  image_size: int
  patch_size: int
  channels: int = 3
  positions: Literal["learned", "sincos"] = "learned"
  pooling: Literal["class_token", "mean"] = "class_token"

  def __post_init__(self):
    super().__post_init__()
    require(self.channels in (1, 3), "channels", self.channels, "expected 1, grey, or 3")
    for name in ("image_size", "patch_size"):
      require(1 <= getattr(self, name) <= 2**14, name, getattr(self, name), "expected from 1 to 16384")
    divides = self.image_size % self.patch_size == 0
    require(divides, "patch_size", self.patch_size, f"expected a divisor of image_size = {self.image_size}")
    require(not self.tie_embeddings, "tie_embeddings", True, "expected False: patches have no embedding to share")
    fits = self.positions == "learned" or self.d_model % 4 == 0
    require(fits, "d_model", self.d_model, "expected a multiple of 4, the sine and cosine of two dimensions")
    if self.encoder.router is not None:
      with in_section("encoder.moe.router"):
        reads = self.encoder.router.reads_ids
        require(not reads, "name", self.encoder.router.name, "expected a router that reads no token ids")

  @property
  def row_format(self) -> PictureFormat:
    return PictureFormat(self.image_size, self.channels, self.tokens)

  @property
  def patches(self) -> int:
    """Patches of a picture."""
    return (self.image_size // self.patch_size) ** 2

  @property
  def tokens(self) -> int:
    """Tokens of a picture: its patches and the class token, if there is one."""
    return self.patches + (self.pooling == "class_token")

  def make(self, rngs: nnx.Rngs) -> "Vision":
    return Vision(self, rngs=rngs)

  def stack_lengths(self, inputs_length: int, targets_length: int) -> dict[str, int]:
    return {"encoder": inputs_length}

  def site(self, moe: MoEConfig) -> Site:
    return Site(self.d_model, moe.num_experts)


class Vision(nnx.Module):
  """Classifies pictures.

  Attributes:
    patch: `[p * p * channels, d]` and patch_bias `[d]`, the embedding of patches.
    positions: `[T, d]`, learned; None for "sincos".
    class_token: `[1, d]`; None where the mean is taken.
    encoder: the stack.
    head: `[d, V]` and head_bias `[V]`, which begin at 0.
  """

  def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
    self.config = config
    of, d = named_streams(rngs), config.d_model
    width = config.patch_size**2 * config.channels
    self.patch = normal(of("patch"), (width, d), width**-0.5, ("patch", "embed"))
    self.patch_bias = zeros((d,), ("embed",))
    learned = config.positions == "learned"
    self.positions = normal(of("positions"), (config.tokens, d), 0.02, (None, "embed")) if learned else None
    self.class_token = zeros((1, d), (None, "embed")) if config.pooling == "class_token" else None
    self.encoder = Stack(config, config.encoder, causal=False, rngs=of("encoder"))
    self.head = zeros((d, config.vocab_size), ("embed", "vocab"))
    self.head_bias = zeros((config.vocab_size,), ("vocab",))

  def __call__(self, batch: Batch, *, training: bool, key: jax.Array | None = None) -> ModelOutput:
    """Logits of the classes, the same for each of a picture's targets.

    Args:
      batch: `images` float32 `[B, H, W, channels]`, `inputs_segments` int32 `[B, T]`, 1 for the tokens of a picture and
        0 for those of a row without one; `targets` int32 `[B, t]`, with `loss_weights` as of any model.
      training: whether routers draw random numbers and use their training capacity.
      key: feeds dropout and random routers; None turns dropout off.
    """
    encoded = self.encode(batch, training=training, key=key)
    logits = self.logits(self.pooled(encoded.x))
    return ModelOutput(
      logits=jnp.broadcast_to(logits[:, None], (*batch["targets"].shape, logits.shape[-1])),
      auxiliary_losses={"encoder": encoded.auxiliary_loss},
      metrics={"encoder": encoded.metrics},
      routing={"encoder": encoded.routing},
      policy={"encoder": encoded.policy},
      seen={"encoder": encoded.seen},
    )

  @jax.named_scope("encoder")
  def encode(self, batch: Batch, *, training: bool = False, key: jax.Array | None = None) -> StackOutput:
    """The encoder's output `[B, T, d]`, the class token first, if there is one, then the patches row by row."""
    segments = batch["inputs_segments"]
    x = self._embedded(batch["images"])
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), segments.shape)
    context = Context(mask=segment_mask(segments, segments), ids=None, positions=positions, segments=segments)
    return self.encoder(x, context, training=training, key=key)

  def pooled(self, x: jax.Array) -> jax.Array:
    """`[B, T, d]` to float32 `[B, d]`, what pictures are classified by: the features of a linear probe."""
    x = x.astype(jnp.float32)
    return x.mean(1) if self.class_token is None else x[:, 0]

  @jax.named_scope("vocabulary")
  def logits(self, features: jax.Array) -> jax.Array:
    """Float32 `[B, d]` to float32 `[B, V]`."""
    return features @ whole(self.head, jnp.float32) + whole(self.head_bias, jnp.float32)

  @jax.named_scope("vocabulary")
  def _embedded(self, images: jax.Array) -> jax.Array:
    """`[B, H, W, channels]` to `[B, T, d]`, with positions."""
    config, dtype = self.config, self.config.compute_dtype
    x = matmul(patches_of(images, config.patch_size), self.patch, dtype, self.patch_bias)
    if self.class_token is not None:
      token = jnp.broadcast_to(whole(self.class_token, dtype), (len(x), 1, x.shape[-1]))
      x = jnp.concatenate([token, x], axis=1)
    if self.positions is not None:
      return x + whole(self.positions, dtype)
    places = sincos_positions(config.image_size // config.patch_size, config.d_model)
    return x.at[:, config.tokens - config.patches :].add(places.astype(dtype))


def patches_of(images: jax.Array, size: int) -> jax.Array:
  """`[B, H, W, c]` to `[B, (H / p) * (W / p), p * p * c]`, the patches row by row."""
  batch, height, width, channels = images.shape
  cut = images.reshape(batch, height // size, size, width // size, size, channels)
  return cut.swapaxes(2, 3).reshape(batch, -1, size * size * channels)


def sincos_positions(side: int, d_model: int) -> np.ndarray:
  """float32 `[side * side, d]`: for each patch sine and cosine of its column, then of its row, as in V-MoE.

  A quarter of the width is each of these, with wavelengths from 2 pi to 10,000 x 2 pi.
  """
  rows, columns = np.divmod(np.arange(side * side), side)
  frequencies = 10_000.0 ** -np.linspace(0, 1, d_model // 4)
  angles = [np.outer(place, frequencies) for place in (columns, rows)]
  return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)
