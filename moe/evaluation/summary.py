"""What a finished training prints: what was learnt, where everything lies, and a sample of generated text."""

import gzip

import jax
import numpy as np

from moe.data import DataConfig, DataError, Vocabulary, make_vocabulary, validation_text
from moe.evaluation.decoding import generate
from moe.evaluation.restore import Trained, restore
from moe.training.config import ExperimentConfig
from moe.training.feed import open_pipeline
from moe.training.figure import draw_loss
from moe.training.loop import Summary
from moe.training.metrics import Record


def summarize(config: ExperimentConfig, summary: Summary) -> None:
  """Draws the loss figure and prints the end of a run."""
  gzip_bits = gzip_bits_per_byte(config.data)
  leak = ", with future leakage: not a language model's loss" if summary.future_leakage else ""
  title = f"{config.model.architecture.replace('_', '-')}, {summary.step} steps{leak}"
  figure = str(summary.workdir.figure)
  try:
    draw_loss(summary.workdir.metrics, summary.workdir.figure, title, gzip_bits)
  except OSError as error:
    figure = f"none, {figure} could not be written: {error.strerror}"
  lines = [
    "",
    *_validation(summary.validation, leak),
    *([] if gzip_bits is None else [f"gzip -9:    {gzip_bits:.4f} bits per byte on the same documents"]),
    *experts_per_token(summary.validation),
    *sample(config, summary),
    f"checkpoint: {summary.checkpoint}",
    f"metrics:    {summary.workdir.metrics}",
    f"figure:     {figure}",
  ]
  print("\n".join(lines), flush=True)


def _validation(record: Record, leak: str) -> list[str]:
  if not record:
    return []
  bits, loss = record["bits_per_byte"], record["loss"]
  return [f"validation: {bits:.4f} bits per byte (loss {loss:.4f} nats per token){leak}"]


def gzip_bits_per_byte(data: DataConfig) -> float | None:
  """What `gzip -9` makes of the validation text, in bits per byte; None where the source has no text."""
  try:
    text = validation_text(data)
  except DataError:
    return None
  return 8 * len(gzip.compress(text, 9)) / len(text) if text else None


def experts_per_token(record: Record) -> list[str]:
  """A line a MoE layer: the shares of tokens with 0, 1, 2, 3, 4 and more experts."""
  name = "/experts_per_token"
  layers = {key.removesuffix(name): shares for key, shares in record.items() if key.endswith(name)}
  if not layers:
    return []
  header = "tokens by number of experts    0      1      2      3      4   more"
  return [
    header,
    *(f"  {layer:26}{' '.join(f'{share:6.1%}' for share in shares)}" for layer, shares in layers.items()),
  ]


def sample(config: ExperimentConfig, summary: Summary) -> list[str]:
  """The beginning of a validation text and how the model goes on, drawn at temperature 0.8."""
  if summary.future_leakage:
    return ["sample:     none, because a decoder that sees later tokens cannot write one by one"]
  trained, vocabulary = restore(summary.workdir.root, "latest"), make_vocabulary(config.data)
  try:
    batch = _first_example(config)
    tokens = generate(
      trained.model,
      batch,
      config.data.targets_length + batch.get("prompt", np.zeros((1, 0))).shape[1],
      temperature=0.8,
      top_p=0.95,
      key=jax.random.key(config.seed),
    )
    return _shown(vocabulary, batch, np.asarray(tokens[0]), trained)
  except DataError as error:  # a token directory whose vocabulary file is not there
    return [f"sample:     none ({error})"]


def _first_example(config: ExperimentConfig) -> dict[str, np.ndarray]:
  """What `generate` needs to continue the first validation example: one row that holds it alone."""
  with open_pipeline(config, config.data.validation_split, training=False) as pipeline:
    batch = {name: array[:1] for name, array in next(pipeline).items()}
  if config.model.architecture == "encoder_decoder":
    own = batch["inputs_segments"] == 1
    return {name: np.where(own, batch[name], 0) for name in ("inputs", "inputs_positions", "inputs_segments")}
  length = int((batch["targets_segments"] == 1).sum())
  return {"prompt": batch["targets"][:, : max(1, length // 2)]}


def _shown(vocabulary: Vocabulary, batch: dict[str, np.ndarray], tokens: np.ndarray, trained: Trained) -> list[str]:
  given = batch["inputs" if "inputs" in batch else "prompt"][0]
  written = tokens[batch["prompt"].shape[1] :] if "prompt" in batch else tokens
  return [
    f"sample of step {trained.step}, temperature 0.8; given",
    *_quoted(vocabulary.decode(given)),
    "the model goes on",
    *_quoted(vocabulary.decode(written)),
  ]


def _quoted(text: str) -> list[str]:
  return [f"  | {line}" for line in text.splitlines() or [""]]
