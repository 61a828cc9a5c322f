"""Shows what the routers of one run do, or of several side by side: `python -m moe.report --workdir runs/quickstart`.

Writes one HTML file that needs nothing else: loss, load, experts per token, co-activation, churn, the tokens of each
expert, and a passage token by token. Runs whose configs differ only in seeds also get their mean and spread. An
existing file is never replaced. `--workdir 'runs/*'` takes every run in a folder. Of a folder of studies, such as
`runs/studies` or `results/studies`, the page has the verdicts, figure and table of each instead.
"""

import glob
import os
import pathlib
import sys
import tempfile

from absl import flags

from moe import commands
from moe.config import ConfigError, require

_WORKDIRS = flags.DEFINE_multi_string(
  "workdir", None, "Folder of a run, or a glob of such folders on a disk; can be repeated.", required=True
)
_OUT = flags.DEFINE_string("out", None, "New file to write; by default report.html, or the first free report-N.html.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Validation batches to route.", lower_bound=1, upper_bound=2**31 - 1)


def main() -> None:
  from moe.files import write_new

  path = commands.new_path("--out", _OUT.value) if _OUT.value else _default_path()  # before the work, not after it
  folders = _matching(_WORKDIRS.value)
  studies = {folder: _results_files(folder) for folder in folders}
  for folder, files in studies.items():
    mixed = any(studies.values()) and not files
    require(not mixed, "--workdir", folder, "expected a folder of studies, as the others are")
  files = [file for found in studies.values() for file in found]
  page = _page_of_studies(files) if files else _page_of_runs(folders)
  try:
    write_new(path, page)
  except OSError as error:
    raise ConfigError("--out", str(path), f"expected a writable path ({error.strerror})") from None
  print(f"written to {path} ({len(page.encode()) / 1e6:.1f} MB)")


def _page_of_runs(folders: list[str]) -> str:
  from moe.report.collect import collect_runs
  from moe.report.rendering import render_report
  from moe.report.sections.overview import summary_lines

  runs = collect_runs(folders, _BATCHES.value)
  print("\n".join(summary_lines(runs)), flush=True)
  return render_report(runs)


def _page_of_studies(files: list[pathlib.Path]) -> str:
  from moe.studies.reporting.page import render_studies

  return render_studies(files)


def _results_files(folder: str) -> list[pathlib.Path]:
  """Those of a folder of studies, which lie in it; a run's folder has a config too. Buckets have runs alone."""
  from moe.files import in_bucket, open_path

  path = open_path("--workdir", folder)
  return [] if in_bucket(path) or (path / "config.json").exists() else sorted(path.glob("*.json"))


def _matching(patterns: list[str]) -> list[str]:
  """The folders of these names, and the runs among those that match a glob.

  Raises:
    ConfigError: no run matches a glob.
  """
  found: list[str] = []
  for pattern in map(os.path.expanduser, patterns):
    if os.path.isdir(pattern) or not glob.has_magic(pattern):
      found.append(pattern)
      continue
    runs = sorted(path for path in glob.glob(pattern) if os.path.isfile(os.path.join(path, "config.json")))
    require(bool(runs), "--workdir", pattern, "expected to match at least one folder of a run")
    found += [run for run in runs if run not in found]
  return found


def _default_path() -> pathlib.Path:
  """The first free name in this folder, or in that of temporary files where this one cannot be written."""
  for folder in (pathlib.Path(), pathlib.Path(tempfile.gettempdir())):
    number, path = 1, folder / "report.html"
    while path.exists():
      number += 1
      path = folder / f"report-{number}.html"
    try:
      return commands.new_path("--out", str(path))
    except ConfigError as error:
      print(error, file=sys.stderr)
  raise ConfigError("--out", None, "expected a path that can be written")


if __name__ == "__main__":
  commands.run(main)
