"""A run on pictures small enough for a test: classes are colours, which a model of two blocks learns in a few steps."""

import pathlib

import numpy as np
from PIL import Image

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}


def write_pictures(folder: pathlib.Path, each: int = 16) -> pathlib.Path:
  """Noisy pictures of 8 x 8 pixels, a folder for each colour."""
  draw = np.random.default_rng(0)
  for name, colour in COLOURS.items():
    (folder / name).mkdir(parents=True)
    for number in range(each):
      pixels = np.clip(colour + draw.normal(0, 60, size=(8, 8, 3)), 0, 255).astype(np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{number}.png")
  return folder


def vision_mapping(folder: pathlib.Path, router: dict | None = None, *, streams: int = 1, **train) -> dict:
  """The config tree of a run; with a router four experts in the second of two blocks."""
  moe = router and {"num_experts": 4, "router": router}
  return {
    "seed": 3,
    "model": {
      "name": "vision",
      "vocab_size": 3,
      "d_model": 16,
      "d_ff": 32,
      "num_heads": 2,
      "d_head": 8,
      "feed_forward": "gelu",
      "image_size": 8,
      "patch_size": 4,
      "pooling": "mean",
      "encoder": {"layers": 2, "moe": moe},
    },
    "data": {
      "source": {"name": "image_folder", "path": str(folder), "validation_fraction": 0.25},
      "objective": {"name": "classification", "crop": "pad", "padding": 1, "flip": True},
      "inputs_length": 4,
      "targets_length": 1,
      "batch_size": 8,
      "streams": streams,
    },
    "optimizer": {"name": "adamw", "learning_rate": 0.01, "schedule": {"name": "constant"}},
    "train": {"steps": 20, "log_every": 1, "eval_every": 20, "checkpoint_every": 8, **train},
  }
