"""Who went to which expert, token by token, from any kind of `Routing`."""

import numpy as np

from moe.routing import RaggedRouting, Routing, SlotRouting


def expert_weights(routing: Routing, batch: int, length: int) -> np.ndarray:
  """The weight with which every token reached every expert.

  Args:
    routing: of one layer or, with a leading axis L, of several; its groups cut a batch of `batch` sequences of
      `length` tokens in row-major order.
    batch: B.
    length: T.

  Returns:
    float32 `[B, T, E]` or `[L, B, T, E]`; 0 where a token did not go (for soft routing: summed over an expert's slots).
  """
  if isinstance(routing, (SlotRouting, RaggedRouting)):
    token, weight = np.asarray(routing.token), np.asarray(routing.weight)
    stacked = token.ndim == (4 if isinstance(routing, SlotRouting) else 3)
  else:
    combine = np.asarray(routing.combine)
    stacked = combine.ndim == 5
    summed = combine.sum(-1)
    return summed.reshape(*summed.shape[: int(stacked)], batch, length, -1)
  if not stacked:
    token, weight = token[None], weight[None]
  if isinstance(routing, SlotRouting):
    experts = token.shape[2]
    expert = np.broadcast_to(np.arange(experts)[:, None], token.shape)
  else:
    sizes = np.asarray(routing.group_sizes).reshape(*token.shape[:2], -1)
    experts = sizes.shape[-1]
    ends = sizes.cumsum(-1)[:, :, None, :]
    expert = (np.arange(token.shape[2])[:, None] >= ends).sum(-1)  # the tail gets `experts`, and its token n
  layers, groups = token.shape[:2]
  n = batch * length // groups
  layer, group, *_ = np.indices(token.shape)
  real = token < n
  table = np.zeros((layers, groups * n, experts), np.float32)
  np.add.at(table, (layer[real], group[real] * n + token[real], expert[real]), weight[real])
  table = table.reshape(layers, batch, length, experts)
  return table if stacked else table[0]
