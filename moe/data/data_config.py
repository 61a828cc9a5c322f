"""The data section of a config."""

import dataclasses

import moe.data.objectives
import moe.data.sources  # noqa: F401, registers every source, as the line above every objective
from moe.config import require
from moe.data.batch import RowFormat, RowShape
from moe.data.images.shape import PictureShape
from moe.data.objective import ObjectiveConfig
from moe.data.objectives.prefix_lm import PrefixLMConfig
from moe.data.source import SourceConfig
from moe.row_format import PictureFormat


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What to read, how to make examples of it, and how many at a time.

  Attributes:
    source: where documents come from, by name; its other fields are the source's own.
    inputs_length: tokens per row that the model reads, EOS included; of a picture, as many as the model makes of it.
    targets_length: tokens per row that the model predicts, EOS included. Where a row is one sequence, its length is the
      sum of both. A picture has a label, or two where `mixup` mixes it with another.
    batch_size: rows of the global batch.
    objective: how documents become inputs and targets, by name, with the objective's own fields.
    vocabulary: "bytes" or the path of a SentencePiece model; empty for a source that stores its own.
    extra_ids: sentinel ids above the vocabulary's own pieces (T5 has 100), which span corruption needs.
    streams: independent streams of rows, ideally a multiple of the number of hosts, since each host reads the streams
      that its rows come from. Part of the config, so that batches and the input position are the same on any number of
      hosts.
    pack: several examples per row, separated in attention and positions.
    shuffle: shards, and rows within a block, in training.
    seed: of everything random in the data.
    prefetch: batches prepared ahead of the device.
  """

  source: SourceConfig
  inputs_length: int
  targets_length: int
  batch_size: int
  objective: ObjectiveConfig = dataclasses.field(default_factory=PrefixLMConfig)
  vocabulary: str = ""
  extra_ids: int = 100
  streams: int = 1
  pack: bool = True
  shuffle: bool = True
  seed: int = 0
  prefetch: int = 4

  def __post_init__(self):
    named = bool(self.vocabulary) or self.source.stores_vocabulary
    require(named, "vocabulary", self.vocabulary, "expected 'bytes' or the path of a SentencePiece model")
    for name, least in {"extra_ids": 0, "batch_size": 1, "streams": 1, "seed": 0, "prefetch": 1}.items():
      require(getattr(self, name) >= least, name, getattr(self, name), f"expected at least {least}")
    require(self.prefetch <= 1000, "prefetch", self.prefetch, "expected at most 1000 batches")
    even = self.batch_size % self.streams == 0
    require(even, "batch_size", self.batch_size, f"expected a multiple of streams = {self.streams}")
    pictures = self.source.gives_pictures
    fitting = sorted(name for name, choice in self.objective.choices.items() if choice.reads_pictures == pictures)
    expected = f"expected one of {', '.join(fitting)}, since the source gives {'pictures' if pictures else 'text'}"
    require(self.objective.reads_pictures == pictures, "objective.name", self.objective.name, expected)
    self.objective.check(self.inputs_length, self.targets_length)

  @property
  def lengths(self) -> dict[str, int]:
    """Tokens per row of inputs and of targets."""
    return {"inputs": self.inputs_length, "targets": self.targets_length}

  def row_shape(self, row_format: RowFormat) -> RowShape:
    """The shape of rows in this format."""
    if isinstance(row_format, PictureFormat):
      return PictureShape(row_format, self.inputs_length, self.targets_length)
    return RowShape(row_format, self.inputs_length, self.targets_length)
