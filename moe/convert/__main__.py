r"""Converts weights and runs into other runs, and back: `python -m moe.convert VERB --help` lists a verb's flags.

    python -m moe.convert from_hf --folder t5-small --workdir runs/t5
    python -m moe.convert to_hf --workdir runs/t5 --folder out
    python -m moe.convert upcycle --from runs/dense --workdir runs/sparse \
        --config.model.encoder.moe.num_experts=8 --config.model.encoder.moe.router.name=expert_choice
    python -m moe.convert merge --from runs/sparse --workdir runs/dense
    python -m moe.convert prune --from runs/sparse --keep 4 --workdir runs/small
    python -m moe.convert grow --from runs/old --workdir runs/new --config.model.decoder.moe.num_experts=16
    python -m moe.convert average --from runs/a --steps 100,200,300 --workdir runs/mean

`from_hf` reads a folder of T5 (1.0, 1.1, Flan) or of Switch Transformers as Hugging Face's `save_pretrained` writes it:
config.json, model.safetensors, sharded or not, and spiece.model. The result is the workdir of a run at step 0, for
`moe.evaluate`, `moe.generate`, and `--config.init.workdir`. `to_hf` writes such a folder. Neither needs PyTorch, and
neither reads pickles. Checkpoints of t5x are not read.

`upcycle` makes a dense run sparse (Komatsuzaki et al. 2022): every expert of a layer begins as a copy of its dense
feed-forward network, and the router is newly initialised. `merge` makes a sparse run dense, with the means of the
experts' matrices: the dense run again if they are still copies, and otherwise not the mean of what the experts compute.
`prune` keeps the experts that the validation split uses most; a single one becomes a dense network. `grow` adds experts
to the stacks whose `num_experts` is given, and changes no output (Chen et al. 2023). `average` takes the mean of the
parameters of several checkpoints of one run, or of runs of one model (repeat `--from`). The result is the workdir of a
run at the step of its source, with one checkpoint: `moe.train` continues its training, learning-rate schedule and input
position included, or another run starts from it, by `--config.init.workdir`. `upcycle` reuses the optimizer's
statistics, unless `--fresh_optimizer` is given; the other verbs reset them. `--config.FIELD=VALUE` changes a field of
the source's config.

Nothing is ever overwritten: what a verb writes is a new folder.
"""

from collections.abc import Callable
from typing import Any

from absl import flags

from moe import commands


def from_hf() -> Callable[[], None]:
  folder = flags.DEFINE_string("folder", None, "Folder of a Hugging Face model.", required=True)
  workdir = flags.DEFINE_string("workdir", None, "New folder of the run.", required=True)
  vocabulary = flags.DEFINE_string("vocabulary", "", "SentencePiece model; by default the folder's spiece.model.")

  def main() -> None:
    from moe.convert.hugging_face.folders import from_folder

    from_folder(folder.value, workdir.value, vocabulary.value)

  return main


def to_hf() -> Callable[[], None]:
  workdir = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  step = flags.DEFINE_string("step", "best", "Checkpoint: 'best', 'latest' or its step.")
  folder = flags.DEFINE_string("folder", None, "New folder.", required=True)

  def main() -> None:
    from moe.convert.hugging_face.folders import to_folder

    to_folder(workdir.value, step.value, folder.value)

  return main


def upcycle() -> Callable[[], None]:
  common = _from_a_run("Folder of the dense run.")
  noise = flags.DEFINE_float("noise", 0.0, "Standard deviation of noise in each expert, relative to its matrices' RMS.")
  fresh = flags.DEFINE_bool("fresh_optimizer", False, "Reset the optimizer's statistics.")

  def main() -> None:
    from moe.convert.runs import upcycle_run

    upcycle_run(*common(), noise=noise.value, fresh_optimizer=fresh.value)

  return main


def merge() -> Callable[[], None]:
  common = _from_a_run("Folder of the run with experts.")

  def main() -> None:
    from moe.convert.runs import merge_run

    merge_run(*common())

  return main


def prune() -> Callable[[], None]:
  common = _from_a_run("Folder of the run with experts.")
  keep = flags.DEFINE_integer("keep", None, "Experts that stay in each MoE layer; 1 makes it dense.", required=True)
  batches = flags.DEFINE_integer(
    "batches", 0, "Validation batches over which use is counted; 0 for the whole split.", lower_bound=0
  )

  def main() -> None:
    from moe.convert.runs import prune_run

    prune_run(*common(), keep=keep.value, batches=batches.value)

  return main


def grow() -> Callable[[], None]:
  common = _from_a_run("Folder of the run with experts.")

  def main() -> None:
    from moe.convert.runs import grow_run

    grow_run(*common())

  return main


def average() -> Callable[[], None]:
  sources = flags.DEFINE_multi_string("from", None, "Folder of a run; may be repeated.", required=True)
  steps = flags.DEFINE_list("steps", None, "Checkpoints of each run: steps, 'best', 'latest'.", required=True)
  workdir = flags.DEFINE_string("workdir", None, "New folder of the run.", required=True)
  fields = commands.define_fields()

  def main() -> None:
    from moe.convert.runs import average_runs

    average_runs(sources.value, steps.value, workdir.value, fields())

  return main


def _from_a_run(what: str) -> Callable[[], tuple[str, str, str, list[tuple[str, Any]]]]:
  """The flags of verbs that make a run of another; returns the function that gives their values."""
  source = flags.DEFINE_string("from", None, what, required=True)
  step = flags.DEFINE_string("step", "best", "Checkpoint: 'best', 'latest' or its step.")
  workdir = flags.DEFINE_string("workdir", None, "New folder of the run.", required=True)
  fields = commands.define_fields()
  return lambda: (source.value, step.value, workdir.value, [*fields()])


main = commands.define_verbs(from_hf, to_hf, upcycle, merge, prune, grow, average)

if __name__ == "__main__":
  commands.run(main)
