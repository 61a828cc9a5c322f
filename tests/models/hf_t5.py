"""Hugging Face's T5 weights as a model of ours, by the converter.

Its T5 1.1 shares the output's matrix with the embedding here but, unlike T5 1.0, does not scale the logits by
`d_model ** -0.5`. Ours scales wherever it shares, so such weights become a model with a head of its own that holds the
same numbers, and the gradient of the shared matrix is the sum of both.
"""

import json
import pathlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moe.config import build
from moe.convert.hugging_face.folders import read_params
from moe.convert.hugging_face.places import places_of
from moe.convert.hugging_face.settings import from_settings
from moe.models import Batch, ModelConfig


class Reference:
  """One file of the parity folder, read as the converter reads a folder; `shapes` and `read` are of `TensorFiles`."""

  def __init__(self, path: pathlib.Path):
    self.arrays = dict(np.load(path))
    settings = json.loads(str(self.arrays.pop("meta")))["config"]
    self.scaled = settings["feed_forward_proj"] == "relu"
    settings |= {"model_type": "t5", "scale_decoder_outputs": self.scaled, "dropout_rate": 0.0}
    self.config = build(ModelConfig, from_settings(settings), "config.json")
    self.shapes = {name[2:]: array.shape for name, array in self.arrays.items() if name.startswith("w_")}

  def read(self, name: str) -> np.ndarray:
    return self.arrays[f"w_{name}"]

  def model(self) -> nnx.Module:
    """Our model with the reference's weights."""
    model = self.config.make(nnx.Rngs(0))
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, nnx.traversals.unflatten_mapping(read_params(self.config, self)))
    nnx.update(model, state)
    return model

  def gradients(self, ours: dict[tuple, np.ndarray]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The name of each gradient that the file has, the reference's, and that of our parameters `ours` by path."""
    places = places_of(self.config)
    for name, array in self.arrays.items():
      if name.startswith("grad_"):
        place = places[name.removeprefix("grad_")]
        yield name, array, place.get(ours[place.path])

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
