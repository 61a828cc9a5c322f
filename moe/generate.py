"""Generates text from a checkpoint: `python -m moe.generate --workdir runs/quickstart --prompt "def main("`.

Decoding is greedy unless `--temperature` is given. An encoder-decoder reads the prompt with its encoder; a decoder
continues it. `--prompts` takes many from a file or a pipe, a line each, and `--json` writes a line for each:

    python -m moe.generate --workdir runs/quickstart --prompts - --json < prompts.txt > texts.jsonl

A prompt ends and is cut as inputs were in training; stderr says what was cut. For a task (`text_to_text`) it is the
text after the task's own preprocessors, with their prefixes.
"""

import json
import os
import pathlib
import sys
import time

from absl import flags

from moe import commands
from moe.config import ConfigError, require

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_STEP = flags.DEFINE_string("step", "best", "Checkpoint: 'best', 'latest' or its step.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be repeated.")
_FILE = flags.DEFINE_string("file", "", "File whose whole text is one prompt; '-' for standard input.")
_PROMPTS = flags.DEFINE_string("prompts", "", "File with one prompt per line; '-' for standard input.")
_LENGTH = flags.DEFINE_integer("length", 128, "Largest number of tokens to generate.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Divides the logits; 0 takes the likeliest token.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample only from the fewest tokens whose probability reaches it.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the sampling.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Prompts continued at a time.", lower_bound=1, upper_bound=4096)
_JSON = flags.DEFINE_bool("json", False, "Print a JSON object per line, in the prompts' order: prompt, text, step.")

_SECONDS_BETWEEN_REPORTS = 10.0


def main() -> None:
  from moe.evaluation.continuation import check_request, continue_prompts, read_prompts
  from moe.evaluation.decoding import Sampling
  from moe.evaluation.restore import restore, vocabulary_of

  sampling = Sampling(_TEMPERATURE.value, _TOP_P.value, _SEED.value)
  texts = _texts()
  check_request(len(texts), _LENGTH.value)
  trained = restore(_WORKDIR.value, _STEP.value)
  source = trained.config.data.source
  require(not source.gives_pictures, "config.data.source.name", source.name, "expected a run on text, to generate it")
  if trained.config.model.evaluates_on_future:
    router = trained.config.model.decoder_router
    wanted = "expected a causal router, to generate token by token"
    raise ConfigError("config.model.decoder.moe.router", router.name, wanted)
  vocabulary = vocabulary_of(trained)
  prompts = read_prompts(trained.config, vocabulary, texts)
  for number, prompt in enumerate(prompts, 1):
    if prompt.cut:
      print(f"prompt {number}: {prompt.cut}", file=sys.stderr)
  ids = [prompt.ids for prompt in prompts]
  written = continue_prompts(trained, ids, _LENGTH.value, sampling, rows=_BATCH.value, progress=_Progress())
  for text, found in zip(texts, written):
    continuation = vocabulary.decode(found.tolist())
    if _JSON.value:
      print(json.dumps({"prompt": text, "text": continuation, "step": trained.step}, ensure_ascii=False), flush=True)
    else:
      print(f"--- prompt\n{text}\n--- continued by step {trained.step}\n{continuation}", flush=True)


def _texts() -> list[str]:
  """All prompts: those of the command line, the file that is one, the lines of the file of many."""
  for text in _PROMPT.value:
    try:
      text.encode()
    except UnicodeEncodeError:
      raise ConfigError("--prompt", text, "expected text in UTF-8") from None
  whole = [_read("--file", _FILE.value)] if _FILE.value else []
  lines = _read("--prompts", _PROMPTS.value).replace("\r\n", "\n").removesuffix("\n") if _PROMPTS.value else ""
  return [*_PROMPT.value, *whole, *(lines.split("\n") if lines else [])]


def _read(flag: str, path: str) -> str:
  try:
    content = sys.stdin.buffer.read() if path == "-" else pathlib.Path(os.path.expanduser(path)).read_bytes()
  except OSError as error:
    raise ConfigError(flag, path, f"expected a file that can be read ({error.strerror})") from None
  try:
    return content.decode().removeprefix("\ufeff")  # the mark that some editors put before a text
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise ConfigError(flag, path, f"expected text in UTF-8; line {line} is not") from None


class _Progress:
  """Reports the progress of long work on stderr."""

  def __init__(self):
    self._said = time.monotonic()

  def __call__(self, done: int, most: int) -> None:
    now = time.monotonic()
    if now - self._said >= _SECONDS_BETWEEN_REPORTS:
      self._said = now
      print(f"{done:,} of at most {most:,} steps", file=sys.stderr, flush=True)


if __name__ == "__main__":
  commands.run(main)
