"""Text to token ids and back, and how many bytes of text each id stands for.

Ids 0 and 1 are padding and end of sequence everywhere (T5). The bytes of an id make losses of different vocabularies
comparable: bits per byte = nats / (ln 2 * bytes).
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from moe.config import ConfigError, require
from moe.data.errors import DataError

PAD, EOS, UNKNOWN = 0, 1, 2
_BYTES = 256
_FIRST_BYTE = 3


class Vocabulary(Protocol):
  """Both ways between text and ids.

  name: "bytes" or the model file's path. size: number of ids, sentinels included. extra_ids: sentinels at the top.
  fingerprint: equal exactly for vocabularies that give the same ids.
  """

  name: str
  size: int
  extra_ids: int
  fingerprint: str

  def encode(self, text: str) -> np.ndarray:
    """The text's ids [n] int32, without EOS."""

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text, on all cores where that helps."""

  def decode(self, ids: Sequence[int]) -> str:
    """The ids' text; padding, EOS and sentinels stand for none."""

  def byte_lengths(self) -> np.ndarray:
    """[size] int32: the UTF-8 bytes that each id stands for, 0 for special ids."""


class ByteVocabulary:
  """One id per UTF-8 byte, numbered as in ByT5 (Xue et al. 2022, section 3.1): byte + 3, sentinels above."""

  def __init__(self, extra_ids: int):
    self.name = "bytes"
    self.extra_ids = extra_ids
    self.size = _FIRST_BYTE + _BYTES + extra_ids
    self.fingerprint = fingerprint(b"bytes", extra_ids)

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
  """A SentencePiece model with `extra_ids` sentinels above its pieces, as T5 numbers them.

  Raises:
    ConfigError: the file is missing, no SentencePiece model, or has not pad 0, eos 1.
  """

  def __init__(self, path: str, extra_ids: int):
    if not os.path.isfile(path):
      raise ConfigError("vocabulary", path, "no such file; give 'bytes' or an existing SentencePiece model")
    try:
      import sentencepiece
    except ImportError:
      raise ConfigError("vocabulary", path, "needs the package sentencepiece, which is not installed") from None
    with open(path, "rb") as file:
      model = file.read()
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(model)
    except RuntimeError:
      raise ConfigError("vocabulary", path, "is no SentencePiece model") from None
    special = self._processor.pad_id(), self._processor.eos_id()
    require(special == (PAD, EOS), "vocabulary", path, f"must have pad id {PAD} and eos id {EOS}, has {special}")
    self.name = path
    self.extra_ids = extra_ids
    self.pieces = self._processor.GetPieceSize()
    self.size = self.pieces + extra_ids
    self.fingerprint = fingerprint(model, extra_ids)

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
    # SentencePiece writes a space as U+2581, three bytes of UTF-8 that stand for one.
    return 1 if model.IsByte(i) else len(model.IdToPiece(i).replace("\u2581", " ").encode())


class StoredVocabulary:
  """The vocabulary of a token directory, known by its description alone; text needs its model file beside it."""

  def __init__(self, directory: str, description: dict):
    self.name = description["name"]
    self.size = description["size"]
    self.extra_ids = description["extra_ids"]
    self.fingerprint = description["fingerprint"]
    self._byte_lengths = np.array(description["byte_lengths"], np.int32)
    self._directory = directory
    self._text: Vocabulary | None = None

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
      beside = self.name if self.name == "bytes" else os.path.join(self._directory, self.name)
      vocabulary = load_vocabulary(beside, self.extra_ids)
      if vocabulary.fingerprint != self.fingerprint:
        raise DataError(beside, "is not the vocabulary that the tokens were made with")
      self._text = vocabulary
    return self._text


def load_vocabulary(name: str, extra_ids: int) -> Vocabulary:
  """The vocabulary "bytes" or of a SentencePiece file.

  Raises:
    ConfigError: as `SentencePieceVocabulary`.
  """
  return ByteVocabulary(extra_ids) if name == "bytes" else SentencePieceVocabulary(name, extra_ids)


def fingerprint(model: bytes, extra_ids: int) -> str:
  return hashlib.sha256(model + f"+{extra_ids}".encode()).hexdigest()[:16]
