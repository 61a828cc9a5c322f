"""HTML and SVG as trees of tags: what is not `Html` already is escaped, so no text of a user's becomes markup."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("br", "meta")


class Html(str):
  """Text that is markup already."""

  __slots__ = ()


def escape(value: Any) -> Html:
  """Markup that shows `value`, quotes included; `Html` stays what it is."""
  return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Any]) -> Html:
  """One piece of markup from several values."""
  return Html("".join(map(escape, parts)))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
  """An element, well-formed as XML too.

  Args:
    name: of the element.
    children: what it holds.
    attributes: `class_` is class, `stroke_width` is stroke-width; one that is None is left out.
  """
  given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
  opening = name + "".join(f' {key}="{escape(value)}"' for key, value in given)
  return Html(f"<{opening}/>" if name in _VOID else f"<{opening}>{join(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], **attributes: Any) -> Html:
  """A table; the first cell of every row is its heading."""
  body = (tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows)
  header = tag("tr", *(tag("th", cell, scope="col") for cell in head))
  whole = tag("table", tag("thead", header), tag("tbody", *body), **attributes)
  return tag("div", whole, class_="scroll")


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
