"""What a finished run prints: what it has learnt, where its files are, and a sample of generated text."""

import gzip

import jax
import numpy as np

from moe.config import first_line
from moe.data import DataConfig, validation_text
from moe.evaluation.continuation import continue_prompts
from moe.evaluation.decoding import Sampling
from moe.evaluation.restore import restore, vocabulary_of
from moe.evaluation.scoring.results import score_lines
from moe.training.experiment import ExperimentConfig
from moe.training.feed import open_pipeline
from moe.training.figure import draw_loss
from moe.training.metrics_file import Record
from moe.training.trainer import Summary


def summarize(config: ExperimentConfig, summary: Summary) -> None:
  """Draws the loss figure and prints the end of the run. What fails here is reported and raises no error."""
  config = summary.workdir.with_vocabulary(config)
  gzip_bits = None if config.data.source.gives_pictures else gzip_bits_per_byte(config.data)
  leak = ", with future leakage: not a language model's loss" if summary.future_leakage else ""
  trained = ", trained with future leakage" if config.model.trains_on_future else ""
  title = f"{config.model.name.replace('_', '-')}, {summary.step} steps{leak or trained}"
  figure = str(summary.workdir.figure)
  try:
    draw_loss(summary.workdir.metrics, summary.workdir.figure, title, gzip_bits)
  except Exception as error:
    figure = f"none ({first_line(error)})"
  lines = [
    "",
    *_validation(summary.validation, leak),
    *([] if gzip_bits is None else [f"gzip -9:    {gzip_bits:.4f} bits per byte of the validation split"]),
    *experts_per_token_lines(summary.validation),
    *([] if config.data.source.gives_pictures else sample_lines(config, summary)),
    *score_lines(config, summary.workdir),
    f"checkpoint: {summary.checkpoint}",
    f"metrics:    {summary.workdir.metrics}",
    f"figure:     {figure}",
  ]
  print("\n".join(lines), flush=True)


def _validation(record: Record, leak: str) -> list[str]:
  if not record:
    return []
  bits, loss = record.get("bits_per_byte"), record["loss"]
  if bits is None:
    return [f"validation: accuracy {record['accuracy']:.4f} (loss {loss:.4f} nats per picture)"]
  return [f"validation: {bits:.4f} bits per byte (loss {loss:.4f} nats per token){leak}"]


def gzip_bits_per_byte(data: DataConfig) -> float | None:
  """The size of the validation text under `gzip -9`, in bits per byte; None if the source has no text."""
  try:
    text = validation_text(data)
  except Exception:  # the run has been a success, whatever has happened to its data since
    return None
  return 8 * len(gzip.compress(text, 9)) / len(text) if text else None


def experts_per_token_lines(record: Record) -> list[str]:
  """One line per MoE layer: the shares of tokens with 0, 1, 2, 3, 4 and more experts."""
  name = "/experts_per_token"
  layers = {key.removesuffix(name): shares for key, shares in record.items() if key.endswith(name)}
  if not layers:
    return []
  header = "tokens by number of experts    0      1      2      3      4   more"
  return [
    header,
    *(f"  {layer:26}{' '.join(f'{share:6.1%}' for share in shares)}" for layer, shares in layers.items()),
  ]


def sample_lines(config: ExperimentConfig, summary: Summary) -> list[str]:
  """The beginning of a validation text and its continuation by the model, sampled at temperature 0.8."""
  if summary.future_leakage:
    return ["sample:     none, because a decoder that sees later tokens cannot generate"]
  if jax.process_count() > 1:
    return ["sample:     none with several hosts; use python -m moe.generate"]
  try:
    trained = restore(summary.workdir.root, "latest")
    vocabulary = vocabulary_of(trained)
    given, sampling = _first_tokens(config), Sampling(temperature=0.8, top_p=0.95, seed=config.seed)
    (written,) = continue_prompts(trained, [given], config.data.targets_length, sampling)
    texts = [vocabulary.decode(ids.tolist()) for ids in (given, written)]
  except Exception as error:  # the model is trained and saved: whatever goes wrong here does not make the run a failure
    return [f"sample:     none ({first_line(error)})"]
  return ["sample at temperature 0.8; given", *_quoted(texts[0]), "the model continues", *_quoted(texts[1])]


def _first_tokens(config: ExperimentConfig) -> np.ndarray:
  """What an encoder reads of the first validation example, or the first half of a decoder's row."""
  with open_pipeline(config, "validation", training=False) as pipeline:
    batch = next(pipeline)
  name = "inputs" if "inputs" in batch else "targets"
  tokens = batch[name][0][batch[f"{name}_segments"][0] == 1]
  return tokens if name == "inputs" else tokens[: (len(tokens) + 1) // 2]


def _quoted(text: str) -> list[str]:
  return [f"  | {line}" for line in text.splitlines() or [""]]
