"""Writes the README's figures from the results files: `python scripts/update_readme.py`.

Each stands between `<!-- NAME -->` and `<!-- /NAME -->`, made of `results/NAME.json`, with the command that made that.
"""

import json
import pathlib
import re

from moe.analysis.router_table import table

ROOT = pathlib.Path(__file__).parents[1]


def layer(results: dict) -> str:
  """The table of `scripts/benchmark_layer.py`."""
  settings = results["settings"]
  rows = [
    f"| {name} | {row['ratio']:.2f} | {_or_dash(row['gflop'])} | {row['megabytes']:.0f} |"
    for name, row in results["layers"].items()
  ]
  return "\n".join(
    [
      "| layer | time, x dense | GFLOP | MB |",
      "|---|---|---|---|",
      *rows,
      "",
      "Forward + backward, {tokens} tokens, d {d_model}, ff {d_ff}, {experts} experts, {dtype}, against a flattened"
      " dense network of equal activated FLOPs".format(**settings),
      "in the same process; FLOPs and temporary memory by XLA's analysis; median of {repeats} runs on two cores"
      " (JAX {jax}).".format(**settings),
      "`python scripts/benchmark_layer.py --results results/layer.json`",
    ]
  )


def routers(results: dict) -> str:
  """All routers: what the code says of them, and what `scripts/benchmark_routers.py` measured."""
  settings = results["settings"]
  return "\n".join(
    [
      *table({name: row["ratio"] for name, row in results["routers"].items()}),
      "",
      "With the default options (Soft MoE: as many slots as tokens);"
      " {tokens} tokens in sequences of {sequence}, d {d_model}, ff {d_ff}, {experts} experts,"
      " float32: forward + backward in training".format(**settings),
      "mode, the router's own decision included, against a dense layer of equal activated FLOPs in the same process;"
      " median of {repeats} runs on two cores (JAX {jax}).".format(**settings),
      "`python scripts/benchmark_routers.py --results results/routers.json`",
    ]
  )


def _or_dash(value: float | None) -> str:
  return "-" if value is None else f"{value:.1f}"


def quickstart(results: dict) -> str:
  """What the quickstart's run reached."""
  return (
    "After {minutes:.1f} minutes on two cores ({steps} steps, {parameters:.1f}M parameters) the validation text costs"
    " **{bits_per_byte:.2f} bits per byte**;\n`gzip -9` needs {gzip_bits_per_byte:.2f} on the same text."
    " The device waited for input {input_wait:.1%} of the time.\n"
    "`python scripts/measure_quickstart.py --workdir runs/quickstart --results results/quickstart.json`"
  ).format(**results)


def updated(readme: str) -> str:
  """The README with every block made anew."""
  for make in (layer, routers, quickstart):
    name = make.__name__
    results = json.loads((ROOT / "results" / f"{name}.json").read_text())
    block = f"<!-- {name} -->\n{make(results)}\n<!-- /{name} -->"
    readme, count = re.subn(f"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, block=block: block, readme, flags=re.S)
    if count != 1:
      raise SystemExit(f"error: README.md has {count} blocks named {name}, expected 1")
  return readme


if __name__ == "__main__":
  path = ROOT / "README.md"
  path.write_text(updated(path.read_text()))
