"""The page of a folder of studies: of each its verdicts, its figure, its table and its runs."""

import base64
import itertools
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from moe.markdown import table_cells
from moe.report.collect import run_names
from moe.report.rendering import render_page
from moe.report.section import Section
from moe.studies.reporting.results_file import lines_of, read_analysis
from moe.studies.running.folder import Folder
from moe.studies.study import Study


def render_studies(files: Sequence[pathlib.Path]) -> str:
  """A page with a section for each of these results files. Links lead to the runs that are in folders beside them.

  Raises:
    UserError: as `read_analysis`.
  """
  folders = list(dict.fromkeys(path.parent for path in files))
  names = dict(zip(folders, run_names([str(folder) for folder in folders]))) if len(folders) > 1 else {}
  sections = [_section(path, names.get(path.parent, ""), *read_analysis(path)) for path in files]
  return render_page("Studies", sections, images=True)


def _section(path: pathlib.Path, of: str, study: Study, analysis: Mapping[str, Any]) -> Section:
  budget, made = analysis["budget"], f"{analysis['finished']} of {analysis['runs']} runs are finished."
  lines = [line for line in lines_of(study, analysis) if line]
  folder = Folder(path.parent / f"{study.runs}-{budget}")
  names = [one["name"] for one in analysis["results"]]
  workdirs = {name: folder.workdir(name) for name in names}
  data = {
    "sentences": [line for line in lines if not line.startswith("|")],
    "figure": _figure(study, analysis),
    "tables": [
      table_cells(group) for is_table, group in itertools.groupby(lines, lambda line: line.startswith("|")) if is_table
    ],
    "runs": [(name, workdir.as_uri() if workdir.is_dir() else "") for name, workdir in workdirs.items()],
  }
  title = ", ".join([study.name, budget, *([of] if of else [])])
  return Section(title, f"{study.claim} ({study.source}). {made}", "study.html", data)


def _figure(study: Study, analysis: Mapping[str, Any]) -> str:
  """In base 64; empty if there is nothing to draw."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "figure.png"
    return base64.b64encode(path.read_bytes()).decode() if study.draw(analysis, path) else ""
