"""The sections of the page, in its order.

A section is a function from the runs to a `Section`, or to None where it has nothing to show. One more is one more
function in this list; `Run.trained` and `Run.batches` are there for those that need the model itself.
"""

from collections.abc import Callable, Sequence

from moe.report.collect import Run
from moe.report.layout import Section
from moe.report.sections.causality import causality
from moe.report.sections.passage import passage
from moe.report.sections.routing import churn, coactivation, experts_per_token
from moe.report.sections.runs import runs
from moe.report.sections.tokens import items, positions
from moe.report.sections.training import dropped, gate_entropy, load, loss

SECTIONS: tuple[Callable[[Sequence[Run]], Section | None], ...] = (
  runs,
  loss,
  load,
  dropped,
  gate_entropy,
  experts_per_token,
  coactivation,
  churn,
  items,
  positions,
  causality,
  passage,
)
