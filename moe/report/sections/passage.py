"""A passage of validation text, coloured by how many experts every token got."""

from collections.abc import Iterator, Sequence

import numpy as np

from moe.report.collect import Layer, Run
from moe.report.html import Html, join, printable, tag
from moe.report.layout import Section, columns, run_key

_MOST_TOKENS = 320
_MOST_COUNTED = 5


def passage(runs: Sequence[Run]) -> Section | None:
  """A panel for every run with routers, its layers to be chosen among."""
  routed = [run for run in runs if run.layers]
  about = (
    f"The first {_MOST_TOKENS} validation tokens that each stack reads, a box for every example; a decoder reads its"
    " targets one place later, after ⟨start⟩. The mouse over a token shows its experts and their weights."
  )
  legend = tag("p", *_legend(), class_="legend")
  panels = [_panel(runs, run) for run in routed]
  return Section("A passage, token by token", about, join([legend, columns(panels, len(panels))])) if routed else None


def _legend() -> Iterator[Html]:
  for count in range(_MOST_COUNTED + 1):
    text = f"{count} or more experts" if count == _MOST_COUNTED else f"{count} expert{'' if count == 1 else 's'}"
    yield tag("span", text, class_=f"t n{count}")


def _panel(runs: Sequence[Run], run: Run) -> Html:
  """The choice of a layer, and the passage once for each, of which the page shows the chosen one."""
  options = [tag("option", name, value=str(index)) for index, name in enumerate(run.layers)]
  choice = tag("label", "layer ", tag("select", *options, class_="layers"))
  texts = [
    tag("div", *_examples(run, layer), class_="passage", hidden="hidden" if index else None)
    for index, layer in enumerate(run.layers.values())
  ]
  return tag("div", tag("h3", run_key(runs, run)), choice, *texts, class_="panel")


def _examples(run: Run, layer: Layer) -> Iterator[Html]:
  starts = np.flatnonzero(layer.positions[:_MOST_TOKENS] == 0).tolist()
  for first, end in zip(starts, [*starts[1:], min(_MOST_TOKENS, len(layer.ids))]):
    yield tag("div", *(_token(run, layer, index) for index in range(first, end)), class_="code")


def _token(run: Run, layer: Layer, index: int) -> Html:
  text = printable(run.texts[int(layer.ids[index])]).replace("\n", "↵\n")
  weights = layer.weights[index]
  experts = sorted(np.flatnonzero(layer.chosen[index]).tolist(), key=lambda expert: -weights[expert])
  named = ", ".join(f"expert {expert} ({weights[expert]:.2f})" for expert in experts)
  count = min(len(experts), _MOST_COUNTED)
  return tag("span", text, class_=f"t n{count}", data_tip=named or "no expert")
