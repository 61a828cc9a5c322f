"""Shows what the routers of one run do, or of several side by side: `python -m moe.report --workdir runs/quickstart`.

Writes one HTML file that needs nothing else: loss, load, experts per token, co-activation, churn, the tokens of each
expert, and a passage token by token. Runs whose configs differ only in seeds also get their mean and spread. An
existing file is never replaced. `--workdir 'runs/*'` takes every run in a folder.
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
  "workdir", None, "Folder of a run, or a glob of such folders; can be repeated.", required=True
)
_OUT = flags.DEFINE_string("out", None, "New file to write; by default report.html, or the first free report-N.html.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Validation batches to route.", lower_bound=1, upper_bound=2**31 - 1)


def main() -> None:
  from moe.files import write_new
  from moe.report.collect import collect_runs
  from moe.report.rendering import render_report
  from moe.report.sections.overview import summary_lines

  path = commands.new_path("--out", _OUT.value) if _OUT.value else _default_path()  # before the work, not after it
  runs = collect_runs(_matching(_WORKDIRS.value), _BATCHES.value)
  print("\n".join(summary_lines(runs)), flush=True)
  page = render_report(runs)
  try:
    write_new(path, page)
  except OSError as error:
    raise ConfigError("--out", str(path), f"expected a writable path ({error.strerror})") from None
  print(f"written to {path} ({len(page.encode()) / 1e6:.1f} MB)")


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
