"""Which patches of some pictures each expert reads: what is drawn on them."""

import base64
import io
from typing import Any

import jax
import numpy as np
from PIL import Image

from moe.data.objectives.classification import ClassificationConfig
from moe.evaluation.restore import Trained
from moe.models.vision import VisionConfig
from moe.report.types import Batch, PictureMaps
from moe.routing import Routing, SoftRouting
from moe.routing.weights import layer_weights

_PICTURES = 4


def picture_maps(trained: Trained, classes: tuple[str, ...], batch: Batch, routing: Routing) -> PictureMaps:
  """The first pictures of a batch, and what each MoE layer of the encoder did with their patches.

  Args:
    trained: the model, which reads pictures.
    classes: their names.
    batch: what it read.
    routing: of the encoder's MoE layers, with a leading axis for the layers.
  """
  model = trained.config.model
  assert isinstance(model, VisionConfig)
  shape = batch["inputs_segments"].shape
  groups = model.encoder.router.groups(*shape, training=False)
  if isinstance(routing, SoftRouting):
    levels = np.asarray(jax.vmap(lambda one: groups.join(one, *shape))(routing.dispatch.sum(-1)))  # [L, B, T, E]
  else:
    levels = (np.asarray(layer_weights(routing, groups, *shape)) > 0).astype(np.float32)
  real = np.flatnonzero(batch["inputs_segments"][:, 0] > 0)[:_PICTURES]
  chosen = levels[:, real, model.tokens - model.patches :]  # without the class token
  most = chosen.max(axis=2, keepdims=True)
  return PictureMaps(
    images=[_png(one) for one in _pixels(trained, batch["images"][real])],
    labels=[classes[label] for label in batch["targets"][real, 0]],
    side=model.image_size // model.patch_size,
    layers={
      f"encoder/layer_{i}": layer
      for i, layer in enumerate(np.divide(chosen, most, out=np.zeros_like(chosen), where=most > 0))
    },
    soft=isinstance(routing, SoftRouting),
  )


def patch_names(model: VisionConfig) -> dict[int, str]:
  """What to call each token of a picture: by its row and column, or the class token."""
  side, first = model.image_size // model.patch_size, model.tokens - model.patches
  names = {first + i: f"{i // side},{i % side}" for i in range(model.patches)}
  return ({0: "class"} if first else {}) | names


def _pixels(trained: Trained, images: Any) -> np.ndarray:
  """uint8 `[n, h, w, c]`, from what the model reads."""
  objective = trained.config.data.objective
  assert isinstance(objective, ClassificationConfig)
  return np.clip((images * objective.std + objective.mean) * 255, 0, 255).round().astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
  """The picture as a URL that holds it."""
  file = io.BytesIO()
  Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
  return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
