"""What vocabulary items look like, one by one."""

from collections.abc import Iterable

from moe.config import ConfigError
from moe.data import DataError, Vocabulary

_SPECIAL = {0: "⟨start⟩", 1: "⟨end⟩"}


def token_texts(vocabulary: Vocabulary, ids: Iterable[int]) -> dict[int, str]:
  """The text of each item, its spaces included; ids without text, and all where the vocabulary has none, in brackets.

  An item that is a part of a character's bytes is U+FFFD.
  """
  try:
    before = vocabulary.encode("a")
  except (ConfigError, DataError):  # a token directory whose vocabulary file is not there
    return {i: _SPECIAL.get(i, f"⟨{i}⟩") for i in ids}
  lengths = vocabulary.byte_lengths()
  start = len(vocabulary.decode(before))
  # Behind another item, because SentencePiece drops the space that begins a text.
  return {
    i: vocabulary.decode([*before, i])[start:] if lengths[i] else _SPECIAL.get(i, f"⟨{i}⟩") for i in map(int, ids)
  }
