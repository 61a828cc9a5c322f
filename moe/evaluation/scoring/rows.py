"""Rows of evaluation: one example each, in batches of few shapes, so that few programs are compiled.

A score must not depend on what is beside an example, nor on how much padding follows it: it is that of a row as long as
those of training. Rows are as short as their examples allow wherever no router could tell.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from flax import nnx

from moe.models import ModelConfig, MoEConfig
from moe.models.model_config import StackConfig
from moe.routing.router import Site
from moe.routing.tokenwise import TokenwiseConfig, TokenwiseRouter
from moe.routing.top_k import TopKConfig

_SHORTEST = 16

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rows:
  """A batch of inputs.

  Attributes:
    examples: int `[B']`, their numbers, of the first B' of B rows; the others are padding.
    batch: `inputs`, `inputs_positions`, `inputs_segments`, int32 `[B, M]`.
  """

  examples: np.ndarray
  batch: Batch


def in_rows(prompts: Sequence[np.ndarray], rows: int, lengths: Sequence[int]) -> list[Rows]:
  """Batches of `rows` rows, first of the shortest: always the same ones, in the same order.

  Args:
    prompts: int32 `[n]` each, at most as long as the longest row.
    rows: B.
    lengths: those that rows may have, ascending; each prompt gets the shortest that it fits in.
  """
  which = np.searchsorted(lengths, [len(prompt) for prompt in prompts])
  found = []
  for index, length in enumerate(lengths):
    chosen = np.flatnonzero(which == index)
    for first in range(0, len(chosen), rows):
      some = chosen[first : first + rows]
      found.append(Rows(some, _padded([prompts[i] for i in some], rows, length)))
  return found


def row_lengths(longest: int, short: bool) -> list[int]:
  """The lengths of rows: powers of two below the longest where they may be `short`, and the longest."""
  powers = [1 << i for i in range(_SHORTEST.bit_length() - 1, longest.bit_length())] if short else []
  return [*(power for power in powers if power < longest), longest]


def _padded(prompts: Sequence[np.ndarray], rows: int, length: int) -> Batch:
  batch = {name: np.zeros((rows, length), np.int32) for name in ("inputs", "inputs_positions", "inputs_segments")}
  for row, ids in enumerate(prompts):
    batch["inputs"][row, : len(ids)] = ids
    batch["inputs_positions"][row, : len(ids)] = np.arange(len(ids))
    batch["inputs_segments"][row, : len(ids)] = 1
  return batch


@dataclasses.dataclass(frozen=True)
class ShortRows:
  """A model that may read shorter rows than in training.

  Attributes:
    model: the config, with the same parameters: its routers have the slots of the longer rows in shorter ones.
    short: by stack, whether its rows may be shorter. Rows of the others stay as long as in training, since groups are
      cut, or slots counted, by their length.
    independent: by stack, whether what it makes of a row never depends on the other rows of the batch.
  """

  model: ModelConfig
  short: dict[str, bool]
  independent: dict[str, bool]


def for_short_rows(model: ModelConfig, lengths: Mapping[str, int]) -> ShortRows:
  """How a model that was trained on rows of these `lengths`, by stack, reads shorter ones in evaluation."""
  changes, short, independent = {}, {}, {}
  for name, stack in model.stacks.items():
    if stack.moe is None:
      short[name] = independent[name] = True
      continue
    changes[name], short[name] = _for_short_rows(stack, stack.moe, model.site(stack.moe), lengths[name])
    independent[name] = stack.moe.router.is_batch_independent(lengths[name], training=False)
  changed = dataclasses.replace(model, **{name: stack for name, stack in changes.items()})  # type: ignore[arg-type]
  return ShortRows(changed, short, independent)


def _for_short_rows(stack: StackConfig, moe: MoEConfig, site: Site, length: int) -> tuple[StackConfig, bool]:
  router = moe.router
  if isinstance(router, TopKConfig) and router.queues_by_sequence:
    # The first tokens of a sequence queue for as many slots as in a long row.
    slots = router.slots_per_expert(length, site.num_experts, training=False)
    router = dataclasses.replace(router, slots=slots)
    return dataclasses.replace(stack, moe=dataclasses.replace(moe, router=router)), True
  if isinstance(router, TopKConfig) and router.dropless:
    return stack, True
  if isinstance(router, TokenwiseConfig):
    made = nnx.eval_shape(lambda: router.make(site, nnx.Rngs(0)))
    return stack, isinstance(made, TokenwiseRouter) and made.capacity(length, training=False) is None
  return stack, not router.is_batch_independent(length, training=False)
