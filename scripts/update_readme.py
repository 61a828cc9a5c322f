"""Writes the README's figures from the results files: `python scripts/update_readme.py`.

Each stands between `<!-- NAME -->` and `<!-- /NAME -->`, made of `results/NAME.json`, with the command that made that.
"""

import json
import pathlib
import re
import textwrap

from scripts.benchmarks.cost_tables import layer_table, mesh_table, step_table
from scripts.benchmarks.router_table import table as router_table
from scripts.benchmarks.study_table import study_table

ROOT = pathlib.Path(__file__).parents[1]


def layer(results: dict) -> str:
  """How tokens travel, and how the cost grows: `scripts/benchmarks/layer.py`."""
  settings, rows = results["settings"], results["rows"]
  text = """Forward + backward in training mode, {tokens:,} tokens, d {d_model}, ff {d_ff}, {experts} experts, {dtype},
    against a flattened dense network of equal activated FLOPs in the same process (Soft MoE has as many slots as
    tokens); FLOPs and temporary memory by XLA's analysis; median of {repeats} runs on two cores (JAX {jax})."""
  weights = 2 * 4 * settings["most_experts"] * settings["d_model"] * settings["d_ff"]
  growth = f"""Expert choice, x dense: {_range(rows, "groups")} tokens of a group (of {settings["most_tokens"]:,}),
    {_range(rows, "tokens")} tokens, {_range(rows, "experts")} experts ({settings["tokens"]:,} tokens;
    {settings["most_experts"]} experts have {weights / 1e9:.1f} GB of weights to read and to make gradients of, and
    {settings["top_k"] * settings["tokens"] // settings["most_experts"]} tokens each)."""
  return "\n".join(
    [
      *layer_table([row for row in rows if row["sweep"] == "ways"]),
      "",
      "![Time next to a dense layer over group size, experts and tokens](docs/layer.png)",
      "",
      *_lines(text.format(**settings)),
      *_lines(growth),
      "`python scripts/benchmarks/layer.py --sweep ways groups experts tokens --results results/layer.json"
      " --figure docs/layer.png`",
    ]
  )


def _range(rows: list[dict], sweep: str) -> str:
  """What expert choice costs along a sweep."""
  curve = [row for row in rows if row["sweep"] == sweep and row["layer"] == "expert choice"]
  ratios = [row["ratio"] for row in curve]
  return f"{min(ratios):.2f} to {max(ratios):.2f} over {curve[0]['at']:,} to {curve[-1]['at']:,}"


def step(results: dict) -> str:
  """The table of `scripts/benchmarks/step.py`."""
  text = """Decoders of {layers} blocks, every second with {experts} experts of width {d_ff} (dense: one network
    {top_k} times as wide), d {d_model}, batches of {batch} x {length} tokens, {dtype}: loss, gradients, Adafactor and
    metrics, interleaved in one process; the share of a step that the layers with experts (or the dense networks in
    their place) and the optimizer take by themselves; median of {repeats} steps on two cores (JAX {jax})."""
  return "\n".join(
    [
      *step_table(results["models"]),
      "",
      *_lines(text.format(**results["settings"])),
      "`python scripts/benchmarks/step.py --results results/step.json`",
    ]
  )


def mesh(results: dict) -> str:
  """The table of `scripts/benchmarks/mesh.py`."""
  text = """A train step of a decoder of {layers} blocks, every second with {experts} experts, d {d_model}, ff {d_ff},
    batches of {batch} x {length} tokens, float32, expert choice: CPU time next to data parallelism, and what one device
    sends in a step, counted in the compiled program and planned by a closed form (measured beyond that: a tied
    embedding's gradient is reduced twice, once for each use). The devices are threads that share
    two cores: they measure work, not a network; median of {repeats} steps (JAX {jax})."""
  return "\n".join(
    [
      *mesh_table(results["meshes"]),
      "",
      *_lines(text.format(**results["settings"])),
      "`python scripts/benchmarks/mesh.py --results results/mesh.json`",
    ]
  )


def plan_8b(results: dict) -> str:
  """The study `8b` of `scripts/benchmarks/plans.py`."""
  text = """The paper's 8B models on 512 chips of TPU v4 (FSDP, everything computed anew in the backward pass, 1M tokens
    a step), each as `configs/pretrain` has it but for the capacity. Capacity c is c * n / E slots of n tokens for both
    families; GLaM's own factor of 1.25 a choice is 2.5 here."""
  return _study("8b", results, text)


def plan_sizes(results: dict) -> str:
  """The study `sizes` of `scripts/benchmarks/plans.py`."""
  text = """Expert choice at 0.1B on 64 chips of TPU v5e, 1M tokens a step; each row changes the first in what it names.
    Experts are divided over 16 chips, a chip holds 16,384 tokens."""
  return _study("sizes", results, text)


def _study(name: str, results: dict, text: str) -> str:
  estimate = """Times are the TPU compiler's own estimates, added up as if nothing overlapped; those of collectives and
    of what it does not estimate are lower bounds by bandwidth. No TPU ran this."""
  command = f"`python -m scripts.benchmarks.plans --study {name} --results results/plan_{name}.json`"
  return "\n".join([*study_table(results), "", *_lines(f"{text} {estimate}"), command])


def routers(results: dict) -> str:
  """All routers: what the code says of them, and what `scripts/benchmarks/layer.py` measured."""
  text = """With the default options (Soft MoE: as many slots as tokens); {tokens} tokens in sequences of 512,
    d {d_model}, ff {d_ff}, {experts} experts, float32: forward + backward in training mode, the router's own decision
    included, against a dense layer of equal activated FLOPs in the same process; median of {repeats} runs on two cores
    (JAX {jax})."""
  return "\n".join(
    [
      *router_table({row["layer"]: row["ratio"] for row in results["rows"]}),
      "",
      *_lines(text.format(**results["settings"])),
      "`python scripts/benchmarks/layer.py --sweep routers --results results/routers.json`",
    ]
  )


def _lines(text: str) -> list[str]:
  return textwrap.wrap(" ".join(text.split()), 120)


def quickstart(results: dict) -> str:
  """What the quickstart's run reached."""
  return (
    "After {minutes:.1f} minutes on two cores ({steps} steps, {parameters:.1f}M parameters) the validation text costs"
    " **{bits_per_byte:.2f} bits per byte**;\n`gzip -9` needs {gzip_bits_per_byte:.2f} on the same text."
    " The device waited for input {input_wait:.1%} of the time.\n"
    "`python scripts/benchmarks/quickstart.py --workdir runs/quickstart --results results/quickstart.json`"
  ).format(**results)


def updated(readme: str) -> str:
  """The README with every block made anew."""
  for make in (layer, step, mesh, plan_8b, plan_sizes, routers, quickstart):
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
