"""Makes a run of something else, or something else of a run: `python -m moe.convert VERB --help` lists a verb's flags.

    python -m moe.convert from_hf --folder t5-small --workdir runs/t5
    python -m moe.convert to_hf --workdir runs/t5 --folder out

`from_hf` reads a folder of T5 (1.0, 1.1, Flan) or of Switch Transformers as Hugging Face's `save_pretrained` writes it:
config.json, model.safetensors, sharded or not, and spiece.model. The result is the workdir of a run at step 0, for
`moe.evaluate`, `moe.generate`, and `--config.init.workdir`. `to_hf` writes such a folder. Neither needs PyTorch, and
neither reads pickles. Checkpoints of t5x are not read.

Nothing is ever overwritten: what a verb writes is a new folder.
"""

from collections.abc import Callable

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


main = commands.define_verbs(from_hf, to_hf)

if __name__ == "__main__":
  commands.run(main)
