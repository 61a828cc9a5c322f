r"""Makes the first centroids of k-means routing: k-means on the inputs of a trained model's routers.

python -m scripts.build_centroids --workdir runs/baseline --stack decoder --experts 16 --out centroids.npz

The baseline has MoE layers, with any router, where the new run will have them; each gets its own centroids. Train
with `--config.model.decoder.moe.router.name=k_means --config.model.decoder.moe.router.centroids=centroids.npz`.
"""

import argparse
import dataclasses
import itertools

import jax
import numpy as np
from flax import nnx

from moe.commands import Parser, new_path, run_script
from moe.config import require
from moe.evaluation.restore import Trained, restore, vocabulary_of
from moe.routing import RouterInput, RouterOutput
from moe.routing.files import write_arrays
from moe.routing.solvers.clustering import k_means, to_unit_length
from moe.training.feed import open_pipeline


class Recorder(nnx.Module):
  """A router that routes like another one, and reports its inputs among its metrics."""

  def __init__(self, router: nnx.Module):
    self.router = router

  def __call__(self, inputs: RouterInput, *, training: bool) -> RouterOutput:
    output = self.router(inputs, training=training)
    return dataclasses.replace(output, metrics={"tokens": inputs.tokens, "mask": inputs.mask})


def main(arguments: list[str] | None = None) -> None:
  build(_parse(arguments))


def build(options: argparse.Namespace) -> None:
  """Writes `centroids` float32 `[layers, experts, d]` and prints how much the clustering explains.

  Raises:
    ConfigError: the file exists, or an option is wrong. DataError: the data cannot be read. WorkdirError,
      CheckpointError: the baseline cannot be restored.
  """
  out = new_path("--out", options.out)
  for name in ("experts", "batches"):
    require(getattr(options, name) >= 1, f"--{name}", getattr(options, name), "expected at least 1")
  require(options.seed >= 0, "--seed", options.seed, "expected at least 0")
  trained = restore(options.workdir, options.step)
  stack = trained.config.model.stacks.get(options.stack)
  sparse = stack is not None and stack.moe is not None
  require(sparse, "--stack", options.stack, f"expected a stack with MoE layers in {options.workdir}")
  layers = layer_inputs(trained, options.stack, options.batches)
  centroids = []
  for number, points in enumerate(layers):
    enough = options.experts <= len(points)
    require(enough, "--experts", options.experts, f"expected at most the {len(points)} tokens of --batches")
    found, objective = k_means(points, options.experts, jax.random.key(options.seed + number))
    centroids.append(np.asarray(found))
    spread = float(np.square(points - points.mean(0)).sum(-1).mean())
    print(f"layer {number}: {len(points)} tokens; {objective[-1] / spread:.1%} of their variance is within clusters")
  write_arrays(str(out), centroids=np.stack(centroids))
  print(f"wrote {out}: {len(centroids)} layers of {options.experts} centroids")


def layer_inputs(trained: Trained, stack: str, batches: int) -> list[np.ndarray]:
  """The unpadded tokens that the router of each MoE layer of a stack is given, at unit length, float32 `[n, d]`.

  Args:
    trained: the baseline.
    stack: "encoder" or "decoder".
    batches: how many of its training split to read.
  """
  vocabulary_of(trained)  # the same as in training
  model = trained.model
  for repeated in getattr(model, stack).units:
    for block in repeated.blocks:
      if block.moe is not None:
        block.moe.router = Recorder(block.moe.router)
  graph, variables = nnx.split(model)

  @jax.jit
  def record(variables, batch):
    metrics = nnx.merge(graph, variables)(batch, training=False).metrics[stack]
    return to_unit_length(metrics["tokens"]), metrics["mask"]

  parts = []
  with open_pipeline(trained.config, "train", training=True) as pipeline:
    for batch in itertools.islice(pipeline, batches):
      tokens, mask = map(np.asarray, record(variables, batch))
      parts.append([layer[real] for layer, real in zip(tokens, mask, strict=True)])
  return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="the run of the baseline")
  parser.add_argument("--stack", choices=("encoder", "decoder"), required=True, help="whose layers to read")
  parser.add_argument("--experts", type=int, required=True)
  parser.add_argument("--step", default="best", help="the baseline's checkpoint: a number, 'best' or 'latest'")
  parser.add_argument("--batches", type=int, default=8, help="of the baseline's training data")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", required=True, help="the .npz file to write")
  return parser.parse_args(arguments)


if __name__ == "__main__":
  run_script(main)
