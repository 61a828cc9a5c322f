"""From runs to the page: a single HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from moe.report.section import Section
from moe.report.sections import SECTIONS
from moe.report.types import Run

# Everything that a template inserts is escaped, so no text of a user can become markup.
TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader("moe.report"),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def render_report(runs: Sequence[Run]) -> str:
  """The report on `runs` as HTML that is well-formed XML too; it asks the network for nothing."""
  sections = [section for make in SECTIONS if (section := make(runs)) is not None]
  images = any(run.maps is not None for run in runs)
  return render_page(f"Routing of {', '.join(run.name for run in runs)}", sections, images=images)


def render_page(title: str, sections: Sequence[Section], *, images: bool = False) -> str:
  """A page of sections.

  Args:
    title: of the page.
    sections: in order.
    images: whether the browser may show images that the page itself holds.
  """
  script = _source("script.js")
  return TEMPLATES.get_template("page.html").render(
    title=title,
    sections=sections,
    images=images,
    style=_source("style.css"),
    script=script,
    # The browser runs no script but this one.
    script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
  )


def _source(name: str) -> Markup:
  """A file of `templates/`, as it is. It must have no `<` and no `&`."""
  return Markup(TEMPLATES.loader.get_source(TEMPLATES, name)[0])
