"""Text to token ids and back, and the bytes of text behind each id.

Ids 0 and 1 are padding and end of sequence in every vocabulary, as in T5. The bytes make losses of different
vocabularies comparable: bits per byte = nats / (ln 2 * bytes).
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from moe.config import ConfigError, require
from moe.data.errors import DataError
from moe.files import open_path, read_bytes

PAD, EOS, UNKNOWN = 0, 1, 2
_BYTES = 256
_FIRST_BYTE = 3


class Vocabulary(Protocol):
  """Converts between text and ids.

  Attributes:
    name: "bytes" or the path of the model file.
    size: number of ids, including sentinels.
    extra_ids: number of sentinels, which are the highest ids.
    fingerprint: equal for vocabularies that give the same ids, and only for those.
    model: content of the SentencePiece file, which workdirs copy; None for bytes, or where the file is missing.
  """

  name: str
  size: int
  extra_ids: int
  fingerprint: str

  @property
  def model(self) -> bytes | None: ...

  def encode(self, text: str) -> np.ndarray:
    """The text's ids [n] int32, without EOS."""

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text, on all cores if the tokenizer can."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids; padding, EOS and sentinels have none."""

  def byte_lengths(self) -> np.ndarray:
    """[size] int32: the length of each id's text in UTF-8 bytes, 0 for special ids."""


class ByteVocabulary:
  """One id per UTF-8 byte, as in ByT5 (Xue et al. 2022, section 3.1): byte + 3, then the sentinels."""

  def __init__(self, extra_ids: int):
    self.name, self.model = "bytes", None
    self.extra_ids = extra_ids
    self.size = _FIRST_BYTE + _BYTES + extra_ids
    self.fingerprint = _fingerprint(b"bytes", extra_ids)

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + _FIRST_BYTE

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    values = np.asarray(ids, np.int64) - _FIRST_BYTE
    values = values[(values >= 0) & (values < _BYTES)]
    return values.astype(np.uint8).tobytes().decode(errors="replace")

  def byte_lengths(self) -> np.ndarray:
    lengths = np.zeros(self.size, np.int32)
    lengths[_FIRST_BYTE : _FIRST_BYTE + _BYTES] = 1
    return lengths


class SentencePieceVocabulary:
  """A SentencePiece model with `extra_ids` sentinels after its pieces, as in T5.

  Raises:
    ConfigError: the file is missing, is not a SentencePiece model, or has other ids for padding and EOS.
  """

  def __init__(self, path: str, extra_ids: int):
    try:
      model = read_bytes(open_path("vocabulary", path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):  # the last: of a NUL
      raise ConfigError(
        "vocabulary", path, "expected 'bytes' or the path of a SentencePiece model; there is no such file"
      ) from None
    except OSError as error:
      raise ConfigError("vocabulary", path, f"expected a file that can be read ({error.strerror})") from None
    try:
      import sentencepiece
    except ImportError:
      raise ConfigError("vocabulary", path, "expected the package sentencepiece to be installed") from None
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
    except RuntimeError:
      raise ConfigError("vocabulary", path, "expected a SentencePiece model") from None
    special = self._processor.pad_id(), self._processor.eos_id()
    require(special == (PAD, EOS), "vocabulary", path, f"expected pad id {PAD} and eos id {EOS}, got {special}")
    self.name, self.model = path, model
    self.extra_ids = extra_ids
    self.pieces = self._processor.GetPieceSize()
    self.size = self.pieces + extra_ids
    self.fingerprint = _fingerprint(model, extra_ids)

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._processor.encode(text), np.int32)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in self._processor.encode(list(texts))]

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode([int(i) for i in ids if EOS < i < self.pieces])

  def byte_lengths(self) -> np.ndarray:
    return np.array([self._bytes_of(i) for i in range(self.size)], np.int32)

  def _bytes_of(self, i: int) -> int:
    model = self._processor
    if i >= self.pieces or model.IsControl(i) or model.IsUnknown(i) or model.IsUnused(i):
      return 0
    # SentencePiece writes a space as U+2581, which is three bytes in UTF-8.
    return 1 if model.IsByte(i) else len(model.IdToPiece(i).replace("\u2581", " ").encode())


class StoredVocabulary:
  """The vocabulary of a token directory, from its description; only encoding and decoding read the model file."""

  def __init__(self, directory: str, description: dict):
    self.name = description["name"]
    self.size = description["size"]
    self.extra_ids = description["extra_ids"]
    self.fingerprint = description["fingerprint"]
    self._byte_lengths = np.array(description["byte_lengths"], np.int32)
    self._directory = directory
    self._text: Vocabulary | None = None

  @property
  def model(self) -> bytes | None:
    try:
      return self._with_text().model
    except (ConfigError, DataError):
      return None

  def encode(self, text: str) -> np.ndarray:
    return self._with_text().encode(text)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    return self._with_text().encode_many(texts)

  def decode(self, ids: Sequence[int]) -> str:
    return self._with_text().decode(ids)

  def byte_lengths(self) -> np.ndarray:
    return self._byte_lengths

  def _with_text(self) -> Vocabulary:
    if self._text is None:
      model = self.name if self.name == "bytes" else os.path.join(self._directory, self.name)
      vocabulary = load_vocabulary(model, self.extra_ids)
      if vocabulary.fingerprint != self.fingerprint:
        raise DataError(model, "is not the vocabulary that the tokens were made with")
      self._text = vocabulary
    return self._text


def load_vocabulary(name: str, extra_ids: int) -> Vocabulary:
  """The vocabulary "bytes", or that of a SentencePiece file, whose path may begin with "~", or lie in a bucket.

  Raises:
    ConfigError: as `SentencePieceVocabulary`.
  """
  if name == "bytes":
    return ByteVocabulary(extra_ids)
  return SentencePieceVocabulary(os.path.expanduser(name), extra_ids)


def _fingerprint(model: bytes, extra_ids: int) -> str:
  return hashlib.sha256(model + f"+{extra_ids}".encode()).hexdigest()[:16]
