"""The page: its sections one after the other, with all it needs inside."""

import base64
import hashlib
import re
from collections.abc import Sequence

from moe.report.collect import Run
from moe.report.html import Html, join, tag
from moe.report.layout import Section
from moe.report.sections import SECTIONS
from moe.report.style import SCRIPT, STYLE


def render(runs: Sequence[Run]) -> str:
  """The report on `runs` as one HTML file, which asks the network for nothing."""
  sections = [section for make in SECTIONS if (section := make(runs)) is not None]
  title = f"Routing of {', '.join(run.name for run in runs)}"
  links = [tag("a", section.title, href=f"#{_anchor(section)}") for section in sections]
  head = tag("head", tag("meta", charset="utf-8"), _policy(), tag("title", title), tag("style", Html(STYLE)))
  top = join([tag("header", tag("h1", title)), tag("nav", *links)])
  main = tag("main", *map(_section, sections))
  body = tag("body", top, main, tag("div", id="tip", hidden="hidden"), tag("script", Html(SCRIPT)))
  return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _policy() -> Html:
  """Tells the browser to load nothing, and to run no script but ours."""
  digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
  policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
  return tag("meta", http_equiv="Content-Security-Policy", content=policy)


def _section(section: Section) -> Html:
  about = tag("div", section.about, class_="about")
  return tag("section", tag("h2", section.title), join([about, section.body]), id=_anchor(section))


def _anchor(section: Section) -> str:
  return re.sub(r"[^a-z]+", "-", section.title.lower()).strip("-")
