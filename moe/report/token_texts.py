"""What vocabulary items look like, one by one."""

import unicodedata
from collections.abc import Iterable

from moe.config import ConfigError
from moe.data import DataError, Vocabulary

_SPECIAL = {0: "⟨start⟩", 1: "⟨end⟩"}


def token_texts(vocabulary: Vocabulary, ids: Iterable[int]) -> dict[int, str]:
  """The text of each item, with its spaces; an id without text, or without a vocabulary to look it up in, in brackets.

  An item that is a part of a character's bytes is U+FFFD.
  """
  try:
    before = vocabulary.encode("a").tolist()
  except (ConfigError, DataError):  # a token directory whose vocabulary file is missing
    return {i: _SPECIAL.get(i, f"⟨{i}⟩") for i in ids}
  lengths = vocabulary.byte_lengths()
  start = len(vocabulary.decode(before))
  # Decoded after another item, because SentencePiece drops a space at the beginning of a text.
  return {
    i: vocabulary.decode([*before, i])[start:] if lengths[i] else _SPECIAL.get(i, f"⟨{i}⟩") for i in map(int, ids)
  }


def printable(text: str) -> str:
  """The text with a visible sign for every character that would control the page: C0, bidirectional marks, ...

  Newlines and tabs stay.
  """
  return "".join(map(_sign, text))


def visible(text: str) -> str:
  """`printable`, on one line, with a visible sign for every space."""
  return printable(text).translate({ord(" "): "␣", ord("\n"): "↵", ord("\t"): "⇥"})


def _sign(character: str) -> str:
  if character in "\n\t" or unicodedata.category(character)[0] != "C":
    return character
  code = ord(character)
  return chr(0x2400 + code) if code < 32 else f"⟨{code:x}⟩"
