"""The results of studies as parts of documents, made from `results/studies/*.json`."""

import pathlib
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from moe.markdown import markdown_table
from moe.studies import Study
from moe.studies.reporting.results_file import lines_of, read_analysis

_HEAD = ("study", "claim", "verdict on the primary contrast", "primary contrast", "seeds", "budget", "regime counts")
FIGURES = "docs/studies"  # from the repository's root


def read_results(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The analyses of the results files of a folder, which may be missing, by the stem of their names."""
  return {path.stem: read_analysis(path)[1] for path in sorted(folder.glob("*.json"))}


def overview(results: Mapping[str, Mapping[str, Any]]) -> str:
  """One row for each study and budget that was run, and the names of the studies that were not."""
  rows = [_row(Study.choices[name], one) for name in Study.choices for one in _found(results, name)]
  missing = ", ".join(f"`{name}`" for name in Study.choices if not _found(results, name))
  text = """Intervals are of 95%. The verdict is that of the primary contrast, which may be narrower than the claim. A
    regime counts if a published sparse model beats the dense one in it; where none does, the verdict says little.
    `docs/studies.md` has the figures, all contrasts, and the command of each study."""
  text += f" Not run yet: {missing}." if missing else ""
  table = [*markdown_table(_HEAD, rows), ""] if rows else []
  return "\n".join([*table, *textwrap.wrap(" ".join(text.split()), 120)])


def chapters(results: Mapping[str, Mapping[str, Any]]) -> str:
  """A chapter for each study: its claim, and of each of its results the figure, the table and all verdicts."""
  lines = []
  for name, study in Study.choices.items():
    lines += [f"### `{name}`", "", *textwrap.wrap(f"{study.claim} ({study.source})", 120), ""]
    found = {stem: one for stem, one in results.items() if one["study"] == name}
    for stem, one in found.items():
      lines += [*_result(stem, one), ""]
    if not found:
      lines += ["Not run yet. This makes it:", f"`{command(name)}`", ""]
  return "\n".join(lines[:-1])


def draw(results: Mapping[str, Mapping[str, Any]], root: pathlib.Path) -> None:
  """Draws the figures that the chapters show.

  Args:
    results: by stem.
    root: of the repository.
  """
  (root / FIGURES).mkdir(exist_ok=True)
  for stem, one in results.items():
    Study.choices[one["study"]]().draw(one, root / FIGURES / f"{stem}.png")


def command(name: str, budget: str = "cpu", files: Iterable[str] = ()) -> str:
  """The command that makes a study's results, of these files of text or of the study's example."""
  study = Study.choices.get(name, Study)
  text = ",".join(f"text/{file}" for file in files) or study.example
  given = {"text": f' --text "{text}"', "data_dir": " --data_dir TFDS", "ratings": " --data_dir ml-100k"}
  data = "".join(given[one] for one in study.reads)
  return f"python -m moe.study --study {name} --budget {budget} --workdir runs/studies{data}"


def _found(results: Mapping[str, Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
  return [one for one in results.values() if one["study"] == name]


def _row(study: type[Study], analysis: Mapping[str, Any]) -> list[str]:
  said = study().headline(analysis)
  if said is None:
    return [study.name, study.claim, "no answer yet", "", "", analysis["budget"], ""]
  return [
    study.name,
    study.claim,
    f"**{said.verdict}**",
    said.number,
    str(said.seeds),
    analysis["budget"],
    said.control,
  ]


def _result(stem: str, analysis: Mapping[str, Any]) -> list[str]:
  study = Study.choices[analysis["study"]]()
  figure = [f"![{study.name}: what was measured of each method]({FIGURES}/{stem}.png)", ""]
  commits = ", ".join(analysis["commits"])
  made = f"Budget `{analysis['budget']}`, {analysis['finished']} of {analysis['runs']} runs, commit {commits}:"
  # In Markdown a single end of a line is none, so that each sentence becomes an item of a list.
  lines = [line if line.startswith("|") or not line else f"- {line}" for line in lines_of(study, analysis)]
  return [
    made,
    f"`{command(study.name, analysis['budget'], analysis.get('text', ()))}`",
    "",
    *(figure if study.headline(analysis) else []),
    *lines,
  ]
