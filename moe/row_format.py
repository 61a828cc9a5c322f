"""What a row of a batch is, for models and data alike."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class PictureFormat:
  """A row is a picture.

  Attributes:
    size: pixels of its height and of its width.
    channels: of each pixel.
    tokens: that a model makes of it.
  """

  size: int
  channels: int
  tokens: int


# An array of inputs and one of targets, or targets only, each row one sequence; or pictures.
RowFormat = Literal["inputs_and_targets", "targets"] | PictureFormat
