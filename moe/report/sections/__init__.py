"""The sections of the page, in its order.

A section is a function from the runs to a `Section`, or to None where it has nothing to show. A new one is a new
function in this list; if it needs the model itself, it has `Run.trained` and `Run.batches`.
"""

from collections.abc import Callable, Sequence

from moe.report.section import Section
from moe.report.sections.causality import causality_section
from moe.report.sections.churn import churn_section
from moe.report.sections.coactivation import coactivation_section
from moe.report.sections.expert_load import load_section
from moe.report.sections.expert_tokens import positions_section, tokens_section
from moe.report.sections.experts_per_token import experts_per_token_section
from moe.report.sections.overview import overview_section
from moe.report.sections.passage import passage_section
from moe.report.sections.pictures import pictures_section
from moe.report.sections.training_curves import dropped_section, gate_entropy_section, loss_section
from moe.report.types import Run

SECTIONS: tuple[Callable[[Sequence[Run]], Section | None], ...] = (
  overview_section,
  loss_section,
  load_section,
  dropped_section,
  gate_entropy_section,
  experts_per_token_section,
  coactivation_section,
  churn_section,
  tokens_section,
  positions_section,
  causality_section,
  passage_section,
  pictures_section,
)
