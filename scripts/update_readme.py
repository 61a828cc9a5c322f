"""Writes measured figures into the README and the pages of `docs`: `python -m scripts.update_readme`.

A block between `<!-- NAME -->` and `<!-- /NAME -->` is made from `results/NAME.json`, and ends with the command that
made that file. It is updated in every document that has its markers. The blocks `studies` and `study_results` are made
from all files of `results/studies`, as `python -m moe.study` writes them, and the figures in `docs/studies` too. The
blocks `overview` and `findings`, and the README's figure, are made from several files, the block `notebooks` from the
notebooks, which themselves get the repository's address.
"""

import functools
import json
import os
import pathlib
import re
import textwrap
from collections.abc import Callable
from typing import Any

from moe.commands import Parser, run_script
from moe.config import UserError
from moe.markdown import markdown_table
from scripts import notebooks, overview, study_results
from scripts.benchmarks.cost_tables import layer_table, mesh_table, step_table
from scripts.benchmarks.router_table import router_table
from scripts.benchmarks.study_table import study_table

ROOT = pathlib.Path(__file__).parents[1]
STUDIES = ROOT / "results" / "studies"


def layer(results: dict) -> str:
  """How a layer's cost depends on dispatch and sizes: `scripts.benchmarks.layer`."""
  settings, rows = results["settings"], results["rows"]
  text = """Forward + backward in training mode, {tokens:,} tokens, d {d_model}, ff {d_ff}, {experts} experts, {dtype},
    relative to a flattened dense network of equal activated FLOPs in the same process (Soft MoE has as many slots as
    tokens); FLOPs and temporary memory from XLA's analysis; median of {repeats} runs on two cores (JAX {jax})."""
  weights = 2 * 4 * settings["most_experts"] * settings["d_model"] * settings["d_ff"]
  growth = f"""Expert choice, x dense: {_range(rows, "groups")} tokens per group (of {settings["most_tokens"]:,}),
    {_range(rows, "tokens")} tokens, {_range(rows, "experts")} experts ({settings["tokens"]:,} tokens;
    {settings["most_experts"]} experts have {weights / 1e9:.1f} GB of weights to read and as much to write as gradients,
    and {settings["top_k"] * settings["tokens"] // settings["most_experts"]} tokens each)."""
  figure = "![Time relative to a dense layer over group size, experts and tokens](docs/layer.png)"
  options = "--sweep ways groups experts tokens --results results/layer.json --figure docs/layer.png"
  ways = layer_table([row for row in rows if row["sweep"] == "ways"])
  return _block([*ways, "", figure], [text.format(**settings), growth], f"scripts.benchmarks.layer {options}")


def _range(rows: list[dict], sweep: str) -> str:
  """What expert choice costs along a sweep."""
  curve = [row for row in rows if row["sweep"] == sweep and row["layer"] == "expert choice"]
  ratios = [row["ratio"] for row in curve]
  return f"{min(ratios):.2f} to {max(ratios):.2f} over {curve[0]['at']:,} to {curve[-1]['at']:,}"


def step(results: dict) -> str:
  """What a train step costs: `scripts.benchmarks.step`."""
  text = """Decoders of {layers} blocks, every second with {experts} experts of width {d_ff} (dense: one network
    {top_k} times as wide), d {d_model}, batches of {batch} x {length} tokens, {dtype}: loss, gradients, Adafactor and
    metrics, interleaved in one process; the shares of the step that the layers with experts (or the dense networks in
    their place) and the optimizer take when run alone; median of {repeats} steps on two cores (JAX {jax})."""
  command = "scripts.benchmarks.step --results results/step.json"
  return _block(step_table(results["models"]), [text.format(**results["settings"])], command)


def mesh(results: dict) -> str:
  """Expert against data parallelism: `scripts.benchmarks.mesh`."""
  text = """A train step of a decoder of {layers} blocks, every second with {experts} experts, d {d_model}, ff {d_ff},
    batches of {batch} x {length} tokens, float32, expert choice: CPU time relative to data parallelism, and what one
    device sends in a step, counted in the compiled program and planned by a closed form (which leaves out that
    CPUs, unlike TPUs, reduce the gradient of a tied embedding twice, once for each use). The devices are threads that
    share two cores: they measure work, not a network; median of {repeats} steps (JAX {jax})."""
  command = "scripts.benchmarks.mesh --results results/mesh.json"
  return _block(mesh_table(results["meshes"]), [text.format(**results["settings"])], command)


def scoring(results: dict) -> str:
  """What ranking a task's labels costs: `scripts.benchmarks.scoring`."""
  text = """Encoder-decoders of 4 and 2 blocks, d 128, every second block of the encoder with 16 experts; inputs of up
    to {length} tokens in batches of {batch}, MNLI's three labels: one compiled call for all labels relative to one
    forward pass with the longest, and the part of the time of {examples:,} examples in which the device has nothing to
    do; median of {repeats} runs on one core (JAX {jax})."""
  rows = [[name, f"{one['ratio']:.2f}", f"{max(0, one['waiting']):.1%}"] for name, one in results["encoders"].items()]
  table = markdown_table(("encoder", "ranking, x one forward pass", "waiting"), rows)
  return _block(
    table, [text.format(**results["settings"])], "scripts.benchmarks.scoring --results results/scoring.json"
  )


def plan_8b(results: dict) -> str:
  """The study `8b` of `scripts.benchmarks.plans`."""
  text = """The paper's 8B models on 512 chips of TPU v4 (FSDP, products with weights and gathered weights kept for the
    backward pass, 1M tokens per step), each as in `configs/pretrain` except for the capacity. Capacity c is c * n / E
    slots for n tokens in both families; GLaM's own factor of 1.25 per choice is 2.5 here. MFU counts three forward
    passes per step."""
  return _plan("8b", results, text)


def plan_sizes(results: dict) -> str:
  """The study `sizes` of `scripts.benchmarks.plans`."""
  text = """Expert choice at 0.1B on 64 chips of TPU v5e, 1M tokens per step; each row changes the first one in what it
    names. Experts are sharded over 16 chips, and a chip has 16,384 tokens. These plans are older than attention's
    kernels and all-to-alls along the first axis: steps are longer here than they are now."""
  return _plan("sizes", results, text)


def _plan(study: str, results: dict, text: str) -> str:
  estimate = """Times are the TPU compiler's own estimates, added up as if nothing overlapped; those of collectives and
    of what it does not estimate are lower bounds by bandwidth. No TPU ran this."""
  command = f"scripts.benchmarks.plans --study {study} --results results/plan_{study}.json"
  return _block(study_table(results), [f"{text} {estimate}"], command)


def routers(results: dict) -> str:
  """All routers: what the code declares, and the cost that `scripts.benchmarks.layer` measured."""
  text = """With the default options (Soft MoE: as many slots as tokens); {tokens} tokens in sequences of 512,
    d {d_model}, ff {d_ff}, {experts} experts, float32: forward + backward in training mode, the router's own decision
    included, relative to a dense layer in the same process that is as wide as the experts per token of the router's
    budget (what its options ask for; in brackets), and of its work (what is computed, empty slots included); median of
    {repeats} runs on two cores (JAX {jax})."""
  table = router_table({row["layer"]: row for row in results["rows"]})
  command = "scripts.benchmarks.layer --sweep routers --results results/routers.json"
  return _block(table, [text.format(**results["settings"])], command)


def quickstart(results: dict) -> str:
  """What the run of the quickstart reached: `scripts.benchmarks.quickstart`."""
  return (
    "After {minutes:.1f} minutes on two cores ({steps} steps, {parameters:.1f}M parameters) the validation text costs"
    " **{bits_per_byte:.2f} bits per byte**;\n`gzip -9` needs {gzip_bits_per_byte:.2f} on the same text."
    " The device waited for input {input_wait:.1%} of the time.\n"
    "`python -m scripts.benchmarks.quickstart --workdir runs/quickstart --results results/quickstart.json`"
  ).format(**results)


def check_h100(results: dict) -> str:
  """What an H100 does with layers: `moe.check`."""
  settings, rows = results["settings"], results["rows"]
  found = {row["check"]: row for row in rows if row["part"] == "speed"}
  kept = [(name.split(", ", 2), row) for name, row in found.items() if "ratio_to_dense" in row]
  table = markdown_table(
    ["layer", "of", "time, x dense", "TFLOP/s", "of the ceiling"],
    [
      [
        layer,
        sizes,
        f"{row['ratio_to_dense']:.2f}",
        f"{row['flops_per_second'] / 1e12:.0f}",
        f"{row['share_of_ceiling']:.0%}",
      ]
      for (_, layer, sizes), row in kept
    ],
  )
  ceiling = next(row["flops_per_second"] for name, row in found.items() if name.startswith("ceiling of products"))
  agreeing = [row for row in rows if "tolerance" in row]
  kernels = [row for row in agreeing if row["part"] == "kernels"]
  text = f"""Forward + backward in bfloat16 with float32 weights, next to a dense network of equal activated FLOPs in
    the same process, on one {settings["device"]} (JAX {settings["packages"]["jax"]}); the ceiling is that of a large
    product, {ceiling / 1e12:.0f} TFLOP/s. {sum(row["ok"] for row in kernels)} of {len(kernels)} checks of kernels
    against the CPU are within tolerance, and {sum(row["ok"] for row in agreeing)} of {len(agreeing)} with those of
    layers and of the ways to experts and back; the others are {_failures(agreeing)}."""
  parts = ",".join(settings["parts"])
  if not results["complete"]:
    text += " The run did not finish: rows after the last one are missing."
  return _block(table, [text], f"moe.check --parts={parts} --results results/check_h100.json")


def _failures(rows: list[dict]) -> str:
  named = [f"{row['check']} ({row['worst']}: {row['error']:.1e})" for row in rows if not row["ok"]]
  return "; ".join(named) or "none"


def _block(table: list[str], texts: list[str], command: str) -> str:
  """A table, paragraphs about it, and the command that measured it."""
  wrapped = [line for text in texts for line in textwrap.wrap(" ".join(text.split()), 120)]
  return "\n".join([*table, "", *wrapped, f"`python -m {command}`"])


BLOCKS: tuple[Callable[[dict], str], ...] = (
  layer,
  step,
  mesh,
  scoring,
  plan_8b,
  plan_sizes,
  routers,
  quickstart,
  check_h100,
)


def measured_blocks() -> dict[str, str]:
  """All blocks by name, from the results files."""
  found = {make.__name__: make(_results(make.__name__)) for make in BLOCKS}
  studies = study_results.read_results(STUDIES)
  found |= {"studies": study_results.overview(studies), "study_results": study_results.chapters(studies)}
  glance = overview.findings(*map(_results, ("layer", "leaks", "plan_8b")))
  found |= {"overview": overview.caption(studies["convergence"]), "findings": glance}
  return found | {"notebooks": notebooks.table(ROOT)}


@functools.cache
def _results(name: str) -> dict[str, Any]:
  return json.loads((ROOT / f"results/{name}.json").read_text())


def read_documents() -> dict[str, str]:
  """The README and all pages of `docs`, by path from the repository's root."""
  paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
  return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def updated_notebooks() -> dict[pathlib.Path, str]:
  """The notebooks with the repository's address."""
  url, paths = notebooks.address(ROOT), sorted((ROOT / "notebooks").glob("*.ipynb"))
  return {path: notebooks.with_address(path.read_text(), path.name, url) for path in paths}


def updated_documents(documents: dict[str, str], blocks: dict[str, str]) -> dict[str, str]:
  """The documents with their blocks replaced.

  Args:
    documents: texts by path.
    blocks: by name; their links to `docs/` are relative to the repository's root.

  Raises:
    UserError: no document has the markers of a block.
  """
  for name, block in blocks.items():
    marked = re.compile(f"<!-- {name} -->\n.*?<!-- /{name} -->", flags=re.DOTALL)
    if not any(marked.search(text) for text in documents.values()):
      raise UserError(f"{name}: expected a block with this name in one of {', '.join(documents)}")
    whole = f"<!-- {name} -->\n{block}\n<!-- /{name} -->"
    documents = {path: marked.sub(_constant(_linked(whole, path)), text) for path, text in documents.items()}
  return documents


def _linked(block: str, path: str) -> str:
  """The block with its links to `docs/` relative to the document at `path`."""
  folder = os.path.dirname(path) or "."
  return re.sub(r"\]\((docs/[^)]*)\)", lambda link: f"]({os.path.relpath(link[1], folder)})", block)


def _constant(text: str) -> Callable[[re.Match], str]:
  """A replacement for `re.sub` in which backslashes mean nothing."""
  return lambda match: text


def main(arguments: list[str] | None = None) -> None:
  Parser(description=__doc__.splitlines()[0]).parse_args(arguments)
  for path, text in updated_documents(read_documents(), measured_blocks()).items():
    (ROOT / path).write_text(text)
  for notebook, text in updated_notebooks().items():
    notebook.write_text(text)
  studies = study_results.read_results(STUDIES)
  study_results.draw(studies, ROOT)
  overview.draw(studies["convergence"], _results("layer"), ROOT / overview.FIGURE)


if __name__ == "__main__":
  run_script(main)
