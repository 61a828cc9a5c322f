"""Blocks of pictures as they are stored, decoded one by one when a row needs them."""

import io
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image

from moe.data.errors import DataError
from moe.row_format import PictureFormat

BLOCK_PICTURES = 2**14
BLOCK_BYTES = 32 * 2**20
_KEPT_BYTES = 64 * 2**20  # of decoded pictures that a block keeps, if all of them fit
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


class Pictures:
  """A block of n labelled pictures.

  Args:
    read: the file of picture i.
    labels: `[n]`.
    name: what to call picture i in an error.

  Attributes:
    labels: int32 `[n]`.
    name: as given.
  """

  def __init__(self, read: Callable[[int], bytes], labels: np.ndarray, name: Callable[[int], str]):
    self._read, self.name = read, name
    self.labels = np.asarray(labels, np.int32)
    self._decoded: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return len(self.labels)

  def decoded(self, i: int, format: PictureFormat, *, any_size: bool) -> np.ndarray:
    """Picture i, uint8 `[h, w, channels]`.

    Raises:
      DataError: it cannot be read, or is not as `check_header` says.
    """
    if i not in self._decoded:
      with open_picture(io.BytesIO(self._read(i)), self.name(i)) as picture:
        check_header(picture, self.name(i), format, any_size=any_size)
        pixels = _pixels(picture, self.name(i), format.channels)
      if pixels.nbytes * len(self) > _KEPT_BYTES:
        return pixels
      self._decoded[i] = pixels
    return self._decoded[i]


def open_picture(file: str | IO[bytes], name: str) -> Image.Image:
  """A picture, of which only the header is read.

  Raises:
    DataError: it is none.
  """
  try:
    return Image.open(file)
  except Exception as error:  # Pillow's decoders raise anything
    raise DataError(name, f"is no picture that can be read ({type(error).__name__})") from None


def check_header(picture: Image.Image, name: str, format: PictureFormat, *, any_size: bool) -> None:
  """Raises `DataError` unless the picture has the format's channels and, but for `any_size`, its size.

  Grey pictures can have three channels, all equal, as decoders make them; those in colour do not become grey.
  """
  channels = 1 if picture.mode in _GREY else 3 if picture.mode in _COLOUR else 0
  if not channels:
    raise DataError(name, f"has pixels of mode {picture.mode!r}: expected grey or colour of 8 bits")
  if channels > format.channels:
    raise DataError(name, f"has {channels} channels: expected {format.channels}, config.model.channels")
  check_size(*picture.size[::-1], name, format, any_size=any_size)


def check_size(height: int, width: int, name: str, format: PictureFormat, *, any_size: bool) -> None:
  """Raises `DataError` unless it is the format's, or may be any."""
  if not any_size and (height, width) != (format.size, format.size):
    wanted = f"expected {format.size} x {format.size}, config.model.image_size, or data.objective.crop = 'inception'"
    raise DataError(name, f"has {height} x {width} pixels: {wanted}")


def _pixels(picture: Image.Image, name: str, channels: int) -> np.ndarray:
  try:
    pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
  except Exception as error:  # a file that is cut short shows only now
    raise DataError(name, f"is damaged ({type(error).__name__}: {error})") from None
  return pixels.reshape(*pixels.shape[:2], channels)
