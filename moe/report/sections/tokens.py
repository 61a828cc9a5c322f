"""Which tokens each expert takes: by vocabulary item and by position."""

from collections.abc import Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import bins
from moe.report.collect import Layer, Run
from moe.report.heat_map import heat_map, scale
from moe.report.html import Html, join, table, tag, visible
from moe.report.layout import Section, by_layer, figure, titled

_MOST_ITEMS = 6
_LEAST_TOTAL = 8
_BINS = 8


def items(runs: Sequence[Run]) -> Section | None:
  """The vocabulary items that each expert takes most often, and those it takes more than its share of."""
  about = (
    "Of every expert's assignments in the validation text: the items it took most often (× how often), and those most"
    " over-represented: lift is the item's share of what the expert took over its share of all tokens, for items that"
    f" occur at least {_LEAST_TOTAL} times. ␣ is a space, ↵ a newline, ⇥ a tab."
  )
  tables = by_layer(runs, _items)
  return Section("Tokens of each expert", about, tables) if tables else None


def positions(runs: Sequence[Run]) -> Section | None:
  """Where in their sequences the tokens of each expert lie."""
  about = (
    "The share of each expert's tokens (percent) that lie in each stretch of positions within their own sequence; the"
    " top row is all tokens. Colours give it as a multiple of the top row: 1 where position makes no difference."
  )
  maps = by_layer(runs, _positions)
  keys = tag("p", scale("none there", "as all tokens"), class_="legend")
  return Section("Positions of each expert's tokens", about, join([keys, maps])) if maps else None


def _items(run: Run, name: str, layer: Layer) -> Html:
  rows = []
  tops = statistics.top_tokens(layer.ids, layer.chosen, _MOST_ITEMS, _LEAST_TOTAL)
  for expert, (frequent, typical) in enumerate(tops):
    taken = [_chip(run, item, f"×{item.count}") for item in frequent] or ["none: dead"]
    rows.append([str(expert), join(taken), join(_chip(run, item, f"{item.lift:.1f}") for item in typical)])
  head = ["expert", "most often", "over-represented (lift)"]
  return tag("div", tag("h3", f"{name} · {run.name}"), table(head, rows, class_="items"), class_="panel")


def _chip(run: Run, item: statistics.TokenCount, note: str) -> Html:
  text = visible(run.texts[item.id])
  tip = f"item {item.id}: {item.count:,} of {item.total:,}"
  return tag("span", tag("code", text), tag("small", note), class_="chip", data_tip=tip)


def _positions(run: Run, name: str, layer: Layer) -> Html:
  where = statistics.by_position(layer.positions, layer.chosen, _BINS)
  share = np.vstack([where.everyone, where.experts])
  dead = np.vstack([[False], layer.chosen.sum(0)[:, None] == 0])
  multiples = np.where(dead, np.nan, share / where.everyone)
  texts = [["" if np.isnan(m) else f"{s:.1%}"[:-1] for s, m in zip(*both)] for both in zip(share, multiples)]
  names = [str(first) for first in where.starts[:-1]]
  rows = ["all", *map(str, range(layer.experts))]
  x = bins("first position of each stretch (tokens)", names, _BINS)
  return figure(heat_map(titled("Positions", run, name), multiples, x, "expert", texts=texts, rows=rows))
