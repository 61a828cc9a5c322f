"""Which arrays a compiled program moves between devices."""

import re
from typing import NamedTuple

_KINDS = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"
_CALL = re.compile(rf"= (?P<result>.*?) (?P<kind>{_KINDS})(-start)?\(")


class Collective(NamedTuple):
  """An instruction and the shape of one of its results."""

  kind: str
  shape: tuple[int, ...]


def collectives(compiled) -> list[Collective]:
  found = []
  for line in compiled.as_text().splitlines():
    if match := _CALL.search(line):
      for sizes in re.findall(r"[a-z0-9]+\[([0-9,]*)\]", match["result"]):
        found.append(Collective(match["kind"], tuple(int(size) for size in sizes.split(",") if size)))
  return found


def shapes(compiled, kind: str) -> list[tuple[int, ...]]:
  return [shape for name, shape in collectives(compiled) if name == kind]
