"""Generates text from a checkpoint: `python -m moe.generate --workdir runs/quickstart --prompt "def main("`.

Decoding is greedy unless `--temperature` is given. An encoder-decoder reads the prompt with its encoder; a decoder
continues it.
"""

import pathlib

from absl import flags

from moe import commands
from moe.config import ConfigError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: 'best', 'latest' or its step.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be repeated.")
_FILE = flags.DEFINE_string("file", "", "File with a prompt.")
_LENGTH = flags.DEFINE_integer("length", 128, "Largest number of tokens to generate.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Divides the logits; 0 takes the likeliest token.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample only from the fewest tokens whose probability reaches it.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")


def main() -> None:
  from moe.evaluation.continuation import continue_texts
  from moe.evaluation.restore import check_vocabulary, restore
  from moe.training.feed import open_vocabulary

  prompts = [*_PROMPT.value, *_read(_FILE.value)]
  trained = restore(_WORKDIR.value, _STEP.value)
  if trained.config.model.evaluates_on_future:
    router = trained.config.model.decoder_router
    raise ConfigError("model.decoder.moe.router", router.name, "expected a causal router, to generate token by token")
  vocabulary = open_vocabulary(trained.config)
  check_vocabulary(trained, vocabulary)
  texts = continue_texts(
    trained,
    vocabulary,
    prompts,
    _LENGTH.value,
    temperature=_TEMPERATURE.value,
    top_p=_TOP_P.value,
    seed=_SEED.value,
  )
  for prompt, text in zip(prompts, texts):
    print(f"--- prompt\n{prompt}\n--- continued by step {trained.step}\n{text}")


def _read(path: str) -> list[str]:
  if not path:
    return []
  try:
    return [pathlib.Path(path).read_text()]
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError("--file", path, f"expected a text file ({error})") from None


if __name__ == "__main__":
  commands.run(main)
