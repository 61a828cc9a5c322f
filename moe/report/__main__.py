"""Draws what the routers of one run do, or of several side by side: `python -m moe.report --workdir runs/quickstart`.

One HTML file that needs nothing else: curves, load, experts per token, co-activation, churn, the tokens each expert
takes, and a passage to point at. Existing files are left alone.
"""

import pathlib

from absl import flags

from moe import commands
from moe.config import ConfigError

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run; may be given several times.", required=True)
_OUT = flags.DEFINE_string("out", None, "File to write; report.html by default, or the first free report-N.html.")
_BATCHES = flags.DEFINE_integer("batches", 4, "Validation batches that the routers are shown.", lower_bound=1)


def main() -> None:
  from moe.report.collect import collect
  from moe.report.rendering import render_report
  from moe.training.workdir import write_new

  path = _free_path(_OUT.value)
  page = render_report(collect(_WORKDIRS.value, _BATCHES.value))
  try:
    write_new(path, page)
  except OSError as error:
    raise ConfigError("--out", str(path), f"cannot be written: {error.strerror}") from None
  print(f"written to {path} ({len(page.encode()) / 1e6:.1f} MB)")


def _free_path(wanted: str | None) -> pathlib.Path:
  """Where to write without replacing a file.

  Raises:
    ConfigError: the name that was asked for is taken, or its folder is missing.
  """
  path, number = pathlib.Path(wanted or "report.html"), 1
  if wanted:
    if path.exists():
      raise ConfigError("--out", wanted, "is there already; name a new file")
    if not path.parent.is_dir():
      raise ConfigError("--out", wanted, f"there is no folder {path.parent}")
  while path.exists():
    number += 1
    path = path.with_name(f"report-{number}.html")
  return path


if __name__ == "__main__":
  commands.run(main)
