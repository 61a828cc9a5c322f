"""What it costs to score a task by ranking its labels, and how long the device waits meanwhile.

    python -m scripts.benchmarks.scoring --results results/scoring.json

Models are small encoder-decoders; the labels are those of MNLI. "Ranking" is the compiled program that gives a batch
its labels' log-likelihoods; it is relative to one forward pass of the same batch with the longest label as targets. The
two take turns in one process. "Waiting" is the part of the time of a whole split, from tokenized examples to
predictions, that is not spent in these programs: the split is answered, and its batches are computed with nothing else
between them.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from moe.checks.timing import measure_in_turns
from moe.commands import Parser, run_script
from moe.data import load_vocabulary
from moe.data.tasks import TaskExample
from moe.data.tasks.glue import TASKS
from moe.evaluation.scoring.answers import Answerer, TaskSplit, read_split
from moe.evaluation.scoring.rank import make_ranker
from moe.parallel.mesh import make_mesh, put_batch
from moe.parallel.platform import start_platform
from moe.studies.repository import REPOSITORY
from moe.training.experiment import ExperimentConfig, load_config
from moe.training.setup import Setup
from moe.training.state import merge
from scripts.benchmarks.arguments import absent_path, positive_int, run_settings, write_results

VOCABULARY = str(REPOSITORY / "configs" / "vocabularies" / "english_8k.model")
ENCODERS = {
  "dense": None,
  "GShard top-2": {"num_experts": 16, "d_ff": 256, "router": "gshard"},
  "expert choice": {"num_experts": 16, "d_ff": 256, "router": "expert_choice"},
}


class RandomTask:
  """MNLI's labels, and inputs of random words, as many as MNLI's have."""

  name, metric, labels, evaluate = "mnli", "accuracy", TASKS["mnli"].labels, staticmethod(TASKS["mnli"].metric_fns[0])

  def __init__(self, number: int, longest: int, vocabulary: int):
    self._number, self._longest, self._vocabulary = number, longest, vocabulary

  def examples(self, split: str) -> Iterator[TaskExample]:
    rng = np.random.default_rng(0)
    for length in rng.gamma(3.0, 14.0, self._number).astype(int).clip(4, self._longest - 1):
      yield TaskExample(rng.integers(3, self._vocabulary, length), "", int(rng.integers(3)), {})

  def postprocess(self, text: str, example: TaskExample) -> int:
    return self.labels.index(text)


def config_of(arguments: argparse.Namespace, moe: dict[str, Any] | None) -> ExperimentConfig:
  """The config of one model."""
  encoder = {"layers": 4, "moe": moe and {**moe, "feed_forward": "geglu"}}
  sizes = {"vocab_size": 8192, "d_model": 128, "d_ff": 512, "num_heads": 4, "d_head": 32}
  data = {
    "source": {"name": "task", "task": "mnli"},
    "vocabulary": VOCABULARY,
    "objective": "text_to_text",
    "inputs_length": arguments.length,
    "targets_length": 16,
    "batch_size": arguments.batch,
  }
  model = {"name": "encoder_decoder", **sizes, "encoder": encoder, "decoder": {"layers": 2}}
  return load_config({"seed": 0, "model": model, "data": data, "train": {"steps": 1}, "score": {}})


def measure(config: ExperimentConfig, arguments: argparse.Namespace) -> dict[str, Any]:
  """The results of one model."""
  vocabulary, mesh = load_vocabulary(VOCABULARY, 100), make_mesh(config.mesh, jax.local_devices()[:1])
  setup = Setup(config, mesh)
  state = setup.first_state({})
  split = read_split(
    config, vocabulary, RandomTask(arguments.examples, arguments.length, vocabulary.size), "validation"
  )
  weights = (state.params, state.router_state)
  rank = make_ranker(config.model, mesh)
  batches = [put_batch(mesh, dict(rows.batch)) for rows in split.batches]
  longest = max(batches, key=lambda batch: batch["inputs"].shape[1])
  whole = put_batch(mesh, _with_longest_label(split, {name: np.asarray(array) for name, array in longest.items()}))
  forward = jax.jit(
    lambda params, router_state, batch: merge(setup.graph, params, router_state)(batch, training=False).logits
  )
  times = measure_in_turns(
    {"rank": (rank, (*weights, longest, split.label_tokens)), "forward": (forward, (*weights, whole))},
    arguments.repeats,
  )
  return {
    "ratio": times["rank"].median / times["forward"].median,
    "waiting": _waiting(Answerer(config, vocabulary, mesh), rank, weights, split, batches, arguments.repeats),
    "rank_seconds": times["rank"].work,
    "forward_seconds": times["forward"].work,
  }


def _with_longest_label(split: TaskSplit, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A batch of the model, whose targets are the longest label."""
  assert split.label_tokens is not None
  ids = split.label_tokens.ids[np.argmax(split.label_tokens.lengths)][None].repeat(len(batch["inputs"]), axis=0)
  real = (ids > 0) & (batch["inputs_segments"][:, :1] > 0)
  positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
  targets = {"targets": ids, "targets_positions": positions, "targets_segments": real.astype(np.int32)}
  return (
    batch
    | {name: array.astype(np.int32) for name, array in targets.items()}
    | {"loss_weights": real.astype(np.float32)}
  )


def _waiting(
  answerer: Answerer, rank: Any, weights: tuple[Any, Any], split: TaskSplit, batches: list[Any], repeats: int
) -> float:
  """One minus the time of the programs alone over that of the whole split; medians of wall times, in turns."""

  def alone() -> None:
    jax.block_until_ready([rank(*weights, batch, split.label_tokens) for batch in batches])

  seconds: dict[str, list[float]] = {"whole": [], "alone": []}
  for repeat in range(repeats + 1):
    for name, run in (("whole", lambda: answerer(*weights, split)), ("alone", alone)):
      start = time.perf_counter()
      run()
      if repeat:  # the first one compiles
        seconds[name].append(time.perf_counter() - start)
  return 1 - float(np.median(seconds["alone"])) / float(np.median(seconds["whole"]))


def main() -> None:
  parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=positive_int, default=32, help="examples per batch")
  parser.add_argument("--length", type=positive_int, default=128, help="tokens of the longest input")
  parser.add_argument("--examples", type=positive_int, default=1000)
  parser.add_argument("--repeats", type=positive_int, default=7)
  parser.add_argument("--results", type=absent_path, help="new JSON file for all measured times")
  arguments = parser.parse_args()
  start_platform()
  found = {name: measure(config_of(arguments, moe), arguments) for name, moe in ENCODERS.items()}
  for name, one in found.items():
    print(f"{name:14} ranking {one['ratio']:.3f} x one forward pass; the device waits {one['waiting']:.1%} of the time")
  if arguments.results:
    write_results({"settings": run_settings(arguments), "encoders": found}, arguments.results)


if __name__ == "__main__":
  run_script(main)
