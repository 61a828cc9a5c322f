"""Hugging Face's T5 weights as a model of ours.

Its T5 1.1 shares the output's matrix with the embedding here but, unlike T5 1.0, does not scale the logits by
`d_model ** -0.5`. Ours scales wherever it shares, so such weights become a model with a head of its own that holds the
same numbers, and the gradient of the shared matrix is the sum of both.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.models import Batch, StackConfig
from moe.models.encoder_decoder import EncoderDecoderConfig

_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}
_FEED_FORWARD = {
  "gated-gelu": {"wi_0": "gate", "wi_1": "up", "wo": "down"},
  "relu": {"wi": "up", "wo": "down"},
}


class Reference:
  """One file of the parity folder."""

  def __init__(self, path: pathlib.Path):
    self.arrays = dict(np.load(path))
    self.settings = json.loads(str(self.arrays.pop("meta")))["config"]

  @property
  def scaled(self) -> bool:
    return self.settings["feed_forward_proj"] == "relu"

  def config(self, **changes) -> EncoderDecoderConfig:
    s = self.settings
    fields = {
      "vocab_size": s["vocab_size"],
      "d_model": s["d_model"],
      "d_ff": s["d_ff"],
      "num_heads": s["num_heads"],
      "d_head": s["d_kv"],
      "encoder": StackConfig(layers=s["num_layers"]),
      "decoder": StackConfig(layers=s["num_layers"]),
      "feed_forward": {"gated-gelu": "geglu", "relu": "relu"}[s["feed_forward_proj"]],
      "relative_buckets": s["relative_attention_num_buckets"],
      "relative_max_distance": s["relative_attention_max_distance"],
      "tie_embeddings": self.scaled,
    }
    return EncoderDecoderConfig(**(fields | changes))

  def model(self) -> nnx.Module:
    """Our model with the reference's weights."""
    model = self.config().make(nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    expected = {path: leaf.shape for path, leaf in nnx.to_flat_state(state)}
    given = {path: jnp.asarray(array) for path, array in self.ours("w_").items()}
    if not self.scaled:
      given["embedding", "head"] = given["embedding", "table"].T
    assert {path: array.shape for path, array in given.items()} == expected
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(given))
    nnx.update(model, state)
    return model

  def ours(self, prefix: str) -> dict[tuple, np.ndarray]:
    """Weights (`w_`) or gradients (`grad_`) under our names; a layer that the file leaves out is NaN."""
    named = {name[len(prefix) :]: array for name, array in self.arrays.items() if name.startswith(prefix)}
    ours, layers = {}, {}
    for name, array in named.items():
      match name.removesuffix(".weight").split("."):
        case ["shared"]:
          ours["embedding", "table"] = array
        case [side, "final_layer_norm"]:
          ours[side, "norm", "scale"] = array
        case [side, "block", "0", "layer", "0", "SelfAttention", "relative_attention_bias"]:
          ours[side, "bias", "table"] = array
        case [side, "block", layer, "layer", part, *rest]:
          layers.setdefault((side, *self._names(side, int(part), rest)), {})[int(layer)] = array
    for (side, *names), arrays in layers.items():
      some = next(iter(arrays.values()))
      stack = [arrays.get(layer, np.full_like(some, np.nan)) for layer in range(self.settings["num_layers"])]
      ours[side, "units", 0, "blocks", 0, *names] = np.stack([each.T for each in stack])
    return ours

  def _names(self, side: str, part: int, rest: list[str]) -> tuple[str, str]:
    parts = ["attention", "feed_forward"] if side == "encoder" else ["attention", "cross_attention", "feed_forward"]
    match rest:
      case ["layer_norm"]:
        return parts[part].removesuffix("_attention") + "_norm", "scale"
      case ["DenseReluDense", name]:
        return "feed_forward", _FEED_FORWARD[self.settings["feed_forward_proj"]][name]
      case [_, name]:
        return parts[part], _ATTENTION[name]

  def batch(self) -> Batch:
    """The reference's inputs; its decoder reads ignored labels too, as zeros."""
    segments = self.arrays["in_mask"].astype(np.int32)
    labels = self.arrays["in_labels"]
    rows, length = labels.shape
    return {
      "inputs": jnp.asarray(self.arrays["in_ids"], jnp.int32),
      "inputs_positions": jnp.asarray(np.arange(segments.shape[1]) * segments, jnp.int32),
      "inputs_segments": jnp.asarray(segments),
      "targets": jnp.asarray(np.maximum(labels, 0), jnp.int32),
      "targets_positions": jnp.tile(jnp.arange(length), (rows, 1)),
      "targets_segments": jnp.ones((rows, length), jnp.int32),
      "loss_weights": jnp.asarray(labels >= 0, jnp.float32),
    }
