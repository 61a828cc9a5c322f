"""Which tokens each expert takes: by vocabulary item and by position."""

from collections.abc import Sequence

import numpy as np

from moe.report import statistics
from moe.report.axes import category_axis
from moe.report.chart import Chart
from moe.report.heat_map import color_keys, heat_map
from moe.report.section import Section, charts_section, layer_grid, layer_title
from moe.report.token_texts import visible
from moe.report.types import Layer, Run

_MOST_ITEMS = 6
_LEAST_TOTAL = 8
_MOST_BINS = 8


def tokens_section(runs: Sequence[Run]) -> Section | None:
  """The vocabulary items that each expert takes most often, and those it takes more than its share of."""
  about = (
    "For each expert, the items that it took most often in the validation text (× how often), and the most"
    " over-represented ones: lift is the item's share of the expert's tokens divided by its share of all tokens, for"
    f" items that occur at least {_LEAST_TOTAL} times. ␣ is a space, ↵ a newline, ⇥ a tab."
  )
  panels = layer_grid(runs, _panel)
  return Section("Tokens of each expert", about, "expert_tokens.html", {"panels": panels}) if panels.cells else None


def positions_section(runs: Sequence[Run]) -> Section | None:
  """Where in their sequences the tokens of each expert are."""
  about = (
    "The percentage of each expert's tokens in each range of positions within their sequence; the top row is all"
    " tokens. Colors show it as a multiple of the top row: 1 where position makes no difference."
  )
  legend, charts = color_keys("none", "like all tokens"), layer_grid(runs, _position_map)
  return charts_section("Positions of each expert's tokens", about, legend, charts)


def _panel(run: Run, name: str, layer: Layer) -> dict:
  tops = statistics.frequent_tokens(layer.ids, layer.chosen, _MOST_ITEMS, _LEAST_TOTAL)
  experts = [
    (
      [_chip(run, item, f"×{item.count}") for item in frequent],
      [_chip(run, item, f"{item.lift:.1f}") for item in typical],
    )
    for frequent, typical in tops
  ]
  return {"title": f"{name} · {run.name}", "experts": experts}


def _chip(run: Run, item: statistics.TokenCount, note: str) -> dict[str, str]:
  tip = f"item {item.id}: {item.count:,} of {item.total:,}"
  return {"text": visible(run.texts[item.id]), "note": note, "tip": tip}


def _position_map(run: Run, name: str, layer: Layer) -> Chart:
  where = statistics.by_position(layer.positions, layer.chosen, _MOST_BINS)
  shares = np.vstack([where.everyone, where.experts])
  dead = np.vstack([[False], layer.chosen.sum(0)[:, None] == 0])
  multiples = np.where(dead, np.nan, shares / where.everyone)
  texts = [["" if np.isnan(m) else f"{100 * s:.1f}" for s, m in zip(*both)] for both in zip(shares, multiples)]
  x = category_axis("first position of each range (tokens)", [str(first) for first in where.starts[:-1]], _MOST_BINS)
  rows = ["all", *map(str, range(layer.experts))]
  return heat_map(layer_title("Positions", run, name), multiples, x, "expert", texts=texts, row_names=rows)
