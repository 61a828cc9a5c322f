"""What all methods of a study have in common: a model, its data, the size of each budget, and how they are tuned."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

_FURTHER = 4  # rates beyond a grid, at most


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much is spent on each method.

  Attributes:
    config: what is changed of the setting's config.
    num_experts: experts of half the dense network's width, of which a token has two.
    seeds: of the comparison; none of them is the one that chooses learning rates.
    rates: the grid of learning rates that every method begins with. Each is tried for the whole length of a run, since
      shorter runs prefer higher rates, sparse models most of all.
    blocks: batches of the validation split whose losses are kept one by one, at the end of a run.
  """

  config: Mapping[str, Any]
  num_experts: int
  seeds: int
  rates: Sequence[float]
  blocks: int


@dataclasses.dataclass(frozen=True)
class Setting:
  """A model, dense as it stands, in one stack of which every layer's network is replaced by a method's experts.

  Attributes:
    name: of the setting, and of the folder of its runs.
    config: file of `configs/`.
    stack: the one with experts.
    budgets: by name.
  """

  name: str
  config: str
  stack: Literal["encoder", "decoder"]
  budgets: Mapping[str, Budget]


def tried_rates(grid: Sequence[float], losses: Mapping[float, float]) -> list[float]:
  """The grid, and while the best of an arm's rates lies at an end, one more beyond it: at most four more.

  Args:
    grid: what every arm begins with, each rate about the same multiple of the one before; one leaves no choice.
    losses: of those that have been tried, by rate.

  Returns:
    All that are known by now, sorted. There may be more once those without a loss are tried.
  """
  rates = sorted(grid)
  while 1 < len(rates) < len(grid) + _FURTHER and (best := _lowest(rates, losses)) in (rates[0], rates[-1]):
    ratio = rates[1] / rates[0]
    rates = [_short(best / ratio), *rates] if best == rates[0] else [*rates, _short(best * ratio)]
  return rates


def best_rate(grid: Sequence[float], losses: Mapping[float, float]) -> float | None:
  """The rate of the lowest loss, the lower one of equals; None before all that the rule asks for are tried."""
  return _lowest(tried_rates(grid, losses), losses)


def best_rates(grid: Sequence[float], tried: Mapping[str, Mapping[float, float]]) -> dict[str, float]:
  """The best rate of each arm whose tuning is finished, of the losses that each has tried."""
  return {arm: best for arm, losses in tried.items() if (best := best_rate(grid, losses)) is not None}


def _lowest(rates: Sequence[float], losses: Mapping[float, float]) -> float | None:
  return min(rates, key=losses.__getitem__) if all(rate in losses for rate in rates) else None


def _short(rate: float) -> float:
  """Without the last digits, which come of dividing."""
  return float(f"{rate:.6g}")


def _smoke(sizes: Mapping[str, Any]) -> Budget:
  """Four steps of a model with these sizes: whether all of it works."""
  config = {
    "model.d_model": 16,
    "model.d_ff": 16,
    "model.num_heads": 2,
    "model.d_head": 8,
    "data.batch_size": 4,
    "optimizer.schedule.warmup_steps": 1,
    "train.steps": 4,
    "train.eval_every": 2,
    "train.eval_batches": 2,
  }
  return Budget({**config, **sizes}, num_experts=8, seeds=1, rates=(0.01,), blocks=2)


_CPU = Budget({}, num_experts=16, seeds=4, rates=(0.01, 0.02, 0.04), blocks=64)


def _gpu(sizes: Mapping[str, Any], blocks: int) -> Budget:
  """One accelerator: 0.7M parameters in the dense blocks, 20M tokens per run; an H100 takes 1.4M per second."""
  config = {
    "model.d_model": 128,
    "model.d_ff": 256,
    "model.num_heads": 4,
    "model.dtype": "bfloat16",
    "data.batch_size": 128,
    "train.steps": 600,
    "train.eval_every": 60,
  }
  return Budget({**config, **sizes}, num_experts=32, seeds=4, rates=(0.006, 0.012, 0.024), blocks=blocks)


def _paper(sizes: Mapping[str, Any]) -> Budget:
  """Zhou et al. 2022, table 1: 0.1B activated parameters, 64 experts, 250,000 batches of a million tokens."""
  config = {
    "model.vocab_size": 32_000,
    "model.d_model": 768,
    "model.d_ff": 3072,
    "model.num_heads": 12,
    "model.d_head": 64,
    "model.dtype": "bfloat16",
    "data.batch_size": 1024,
    "train.steps": 250_000,
    "train.eval_every": 2500,
  }
  return Budget({**config, **sizes}, num_experts=64, seeds=3, rates=(0.0003, 0.0006, 0.0012), blocks=64)


def _both_stacks(layers: tuple[int, int], length: int) -> dict[str, int]:
  """Layers of encoder and decoder, which read rows of the same length."""
  encoder, decoder = layers
  return {
    "model.encoder.layers": encoder,
    "model.decoder.layers": decoder,
    "data.inputs_length": length,
    "data.targets_length": length,
  }


DECODER = Setting(
  name="decoder",
  config="studies/decoder.py",
  stack="decoder",
  budgets={
    "smoke": _smoke({"model.decoder.layers": 2, "data.targets_length": 32}),
    "cpu": _CPU,
    "gpu": _gpu({"model.decoder.layers": 4, "data.targets_length": 256}, blocks=24),
    "paper": _paper({"model.decoder.layers": 12, "data.targets_length": 1024}),
  },
)

ENCODER = Setting(
  name="encoder",
  config="studies/encoder.py",
  stack="encoder",
  budgets={
    "smoke": _smoke(_both_stacks((2, 1), 32)),
    # Experts of an encoder learn from little, from what the decoder's attention sends back: the fewer, the sooner.
    "cpu": dataclasses.replace(_CPU, num_experts=4, rates=(0.005, 0.01)),
    "gpu": dataclasses.replace(_gpu(_both_stacks((4, 4), 256), blocks=12), num_experts=8),
    "paper": _paper(_both_stacks((12, 12), 512)),
  },
)

VISION = Setting(
  name="vision",
  config="studies/vision.py",
  stack="encoder",
  budgets={
    "smoke": dataclasses.replace(_smoke({"model.encoder.layers": 2}), num_experts=16),
    "cpu": Budget({}, num_experts=16, seeds=3, rates=(0.003, 0.006, 0.012), blocks=32),
    # CIFAR-10 in 64 patches.
    "gpu": Budget(
      {
        "data.source.dataset": "cifar10",
        "data.objective": {"name": "classification", "crop": "pad", "flip": True},
        "data.inputs_length": 64,
        "data.batch_size": 256,
        "model.image_size": 32,
        "model.patch_size": 4,
        "model.channels": 3,
        "model.d_model": 192,
        "model.d_ff": 768,
        "model.num_heads": 6,
        "model.d_head": 32,
        "model.dtype": "bfloat16",
        "model.encoder.layers": 6,
        "train.steps": 4000,
        "train.eval_every": 400,
        "train.checkpoint_every": 4000,
      },
      num_experts=64,
      seeds=4,
      rates=(0.0005, 0.001, 0.002),
      blocks=32,
    ),
    # S/14 with 256 experts, on which the paper's ablations are.
    "paper": Budget(
      {
        "data.source": {"name": "image_dataset", "dataset": "imagenet2012", "validation_split": "validation"},
        "data.objective": {"name": "classification", "crop": "inception", "flip": True},
        "data.inputs_length": 256,
        "data.batch_size": 4096,
        "model.vocab_size": 1000,
        "model.image_size": 224,
        "model.patch_size": 14,
        "model.channels": 3,
        "model.d_model": 384,
        "model.d_ff": 1536,
        "model.num_heads": 6,
        "model.d_head": 64,
        "model.dtype": "bfloat16",
        "model.encoder.layers": 12,
        "train.steps": 300_000,
        "train.eval_every": 10_000,
        "train.checkpoint_every": 10_000,
      },
      num_experts=256,
      seeds=3,
      rates=(0.0005, 0.001, 0.002),
      blocks=12,
    ),
  },
)
