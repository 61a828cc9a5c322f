"""Shows what the routers of one run do, or of several side by side: `python -m moe.report --workdir runs/quickstart`.

Writes one HTML file that needs nothing else: loss, load, experts per token, co-activation, churn, the tokens of each
expert, and a passage token by token. An existing file is never replaced.
"""

import pathlib

from absl import flags

from moe import commands
from moe.config import ConfigError

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run; can be repeated.", required=True)
_OUT = flags.DEFINE_string("out", None, "New file to write; by default report.html, or the first free report-N.html.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Validation batches to route.", lower_bound=1)


def main() -> None:
  from moe.report.collect import collect_runs
  from moe.report.rendering import render_report
  from moe.training.workdir import write_new

  path = _free_path(_OUT.value)
  page = render_report(collect_runs(_WORKDIRS.value, _BATCHES.value))
  try:
    write_new(path, page)
  except OSError as error:
    raise ConfigError("--out", str(path), f"expected a writable path ({error.strerror})") from None
  print(f"written to {path} ({len(page.encode()) / 1e6:.1f} MB)")


def _free_path(wanted: str | None) -> pathlib.Path:
  """`wanted`, or the first free name.

  Raises:
    ConfigError: `wanted` exists, or its folder does not.
  """
  path, number = pathlib.Path(wanted or "report.html"), 1
  if wanted:
    if path.exists():
      raise ConfigError("--out", wanted, "expected a file that does not exist")
    if not path.parent.is_dir():
      raise ConfigError("--out", wanted, "expected a file in an existing folder")
  while path.exists():
    number += 1
    path = path.with_name(f"report-{number}.html")
  return path


if __name__ == "__main__":
  commands.run(main)
