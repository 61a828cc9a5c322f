"""Classification of pictures: from a picture to its label, with the augmentations of training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import Image

from moe.config import require
from moe.data.batch import RowFormat, RowShape
from moe.data.errors import DataError
from moe.data.images.pictures import Pictures
from moe.data.images.shape import Labelled, PictureShape
from moe.data.objective import Key, Objective, ObjectiveConfig
from moe.data.vocabulary import Vocabulary
from moe.row_format import PictureFormat

_EVALUATED = 7 / 8  # of a picture's shorter side, at whose scale the middle is evaluated: 224 of 256 pixels
_RATIOS = 3 / 4, 4 / 3  # of the width of a random part to its height


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(ObjectiveConfig, name="classification"):
  """A picture is what is read, its label is predicted. Only training is augmented.

  Attributes:
    crop: "none" takes pictures as they are, which must be of the model's size. So must those of "pad": in training they
      are surrounded by `padding` black pixels, and cut anywhere (He et al. 2016, section 4.2). "inception" takes those
      of any size: of each, in training, a random part of at least `least_area` of it and of a ratio from 3:4 to 4:3,
      and in evaluation the middle, resized (Szegedy et al. 2015, section 6; V-MoE and Soft MoE).
    padding: in pixels.
    least_area: a fraction.
    flip: whether one in two is mirrored in training.
    mean: of pixels between 0 and 1, one for all channels or one each; it is subtracted.
    std: likewise; divides the difference. With the defaults pixels are between -1 and 1.
    mixup: in training, the picture and its label are mixed with another of the block, in shares drawn from
      Beta(mixup, mixup) (Zhang et al. 2018); 0 for none. Then `targets_length` is 2, else 1.
  """

  reads_pairs = True
  reads_pictures = True

  crop: Literal["none", "pad", "inception"] = "none"
  padding: int = 4
  least_area: float = 0.05
  flip: bool = False
  mean: tuple[float, ...] = (0.5,)
  std: tuple[float, ...] = (0.5,)
  mixup: float = 0.0

  def __post_init__(self):
    require(0 <= self.padding <= 1024, "padding", self.padding, "expected from 0 to 1024 pixels")
    require(0 < self.least_area <= 1, "least_area", self.least_area, "expected more than 0 and at most 1")
    require(self.mixup >= 0, "mixup", self.mixup, "expected at least 0")
    for name in ("mean", "std"):
      given = getattr(self, name)
      require(len(given) in (1, 3), name, list(given), "expected a number for all channels, or one for each of three")
    require(min(self.std) > 0, "std", list(self.std), "expected more than 0")

  def check(self, inputs_length: int, targets_length: int) -> None:
    labels = 2 if self.mixup else 1
    expected = f"expected {labels}, the label{'s' * (labels > 1)} of a picture with objective.mixup = {self.mixup:g}"
    require(targets_length == labels, "targets_length", targets_length, expected)
    require(inputs_length >= 1, "inputs_length", inputs_length, "expected at least 1, the tokens of a picture")

  def check_format(self, row_format: RowFormat) -> None:
    expected = "expected an objective of text, since the model reads text"
    require(isinstance(row_format, PictureFormat), "objective.name", self.name, expected)
    assert isinstance(row_format, PictureFormat)
    for name in ("mean", "std"):
      given, channels = getattr(self, name), row_format.channels
      fits = len(given) in (1, channels)
      require(fits, f"objective.{name}", list(given), f"expected 1 number, or {channels}, one for each channel")

  def check_source(self, source: Any, shape: RowShape) -> None:
    source.check_pictures(shape.format, any_size=self.crop == "inception")

  def make(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    return self._objective(shape, vocabulary, augment=True)

  def make_plain(self, shape: RowShape, vocabulary: Vocabulary) -> Objective:
    return self._objective(shape, vocabulary, augment=False)

  def _objective(self, shape: RowShape, vocabulary: Vocabulary, *, augment: bool) -> Objective:
    def examples(pictures: Any, key: Key) -> "LabelledPictures":
      outside = np.flatnonzero((pictures.labels < 0) | (pictures.labels >= vocabulary.size))
      if len(outside):
        first = int(outside[0])
        expected = f"expected from 0 to {vocabulary.size - 1}, the classes"
        raise DataError(pictures.name(first), f"has label {pictures.labels[first]}: {expected}")
      return LabelledPictures(pictures, self, shape, key, augment=augment)

    return examples


class LabelledPictures:
  """The examples of a block, each a function that makes it when its row is filled."""

  def __init__(self, pictures: Pictures, config: ClassificationConfig, shape: RowShape, key: Key, *, augment: bool):
    assert isinstance(shape, PictureShape)
    self._pictures, self._config, self._format, self._key = pictures, config, shape.format, key
    self._targets, self._augment = shape.targets_length, augment
    self._mean, self._std = (np.array(given, np.float32) for given in (config.mean, config.std))
    self.lengths = np.ones((len(pictures), 2), np.int64)

  def __getitem__(self, i: int) -> Callable[[], Labelled]:
    return functools.partial(self._make, int(i))

  def _make(self, i: int) -> Labelled:
    draw = np.random.default_rng((*self._key, i)) if self._augment else None
    image, labels = self._image(i, draw), self._pictures.labels
    targets, weights = np.full(self._targets, labels[i], np.int32), np.zeros(self._targets, np.float32)
    weights[0] = 1
    if draw is not None and self._config.mixup:
      share, other = draw.beta(self._config.mixup, self._config.mixup), int(draw.integers(len(labels)))
      image = np.float32(share) * image + np.float32(1 - share) * self._image(other, draw)
      targets[1], weights[:] = labels[other], (share, 1 - share)
    return Labelled(image, targets, weights)

  def _image(self, i: int, draw: np.random.Generator | None) -> np.ndarray:
    config, size = self._config, self._format.size
    any_size = config.crop == "inception"
    pixels = self._pictures.decoded(i, self._format, any_size=any_size)
    if any_size:
      pixels = middle(pixels, size) if draw is None else random_part(pixels, size, config.least_area, draw)
    if draw is not None and config.crop == "pad":
      pixels = shifted(pixels, config.padding, draw)
    if draw is not None and config.flip and draw.integers(2):
      pixels = pixels[:, ::-1]
    return (pixels * np.float32(1 / 255) - self._mean) / self._std


def shifted(pixels: np.ndarray, padding: int, draw: np.random.Generator) -> np.ndarray:
  """uint8 `[h, w, c]`: surrounded by `padding` black pixels, a random part of the same size."""
  height, width = pixels.shape[:2]
  down, right = draw.integers(2 * padding + 1, size=2)
  padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
  return padded[down : down + height, right : right + width]


def random_part(pixels: np.ndarray, size: int, least_area: float, draw: np.random.Generator) -> np.ndarray:
  """uint8 `[h, w, c]` to `[size, size, c]`: a random part of at least this share of the area, resized.

  After ten draws that do not fit it is the largest square in the middle.
  """
  height, width = pixels.shape[:2]
  for _ in range(10):
    area = draw.uniform(least_area, 1) * height * width
    ratio = np.exp(draw.uniform(*np.log(_RATIOS)))
    across, down = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
    if 0 < across <= width and 0 < down <= height:
      top, left = int(draw.integers(height - down + 1)), int(draw.integers(width - across + 1))
      return _resized(pixels, size, (left, top, left + across, top + down))
  return _square(pixels, size, min(height, width))


def middle(pixels: np.ndarray, size: int) -> np.ndarray:
  """uint8 `[h, w, c]` to `[size, size, c]`: the square in the middle of 7/8 of the shorter side, resized."""
  return _square(pixels, size, max(round(min(pixels.shape[:2]) * _EVALUATED), 1))


def _square(pixels: np.ndarray, size: int, side: int) -> np.ndarray:
  top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
  return _resized(pixels, size, (left, top, left + side, top + side))


def _resized(pixels: np.ndarray, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
  """The part in a box of left, top, right and bottom; without a trace of what is around it."""
  left, top, right, bottom = box
  part = np.ascontiguousarray(pixels[top:bottom, left:right])
  picture = Image.fromarray(part[:, :, 0] if part.shape[2] == 1 else part)
  return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, part.shape[2])
