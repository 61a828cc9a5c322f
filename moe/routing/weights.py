"""Who went to which expert, token by token, from any kind of `Routing`."""

import numpy as np

from moe.routing import Groups, RaggedRouting, Routing, SlotRouting


def expert_weights(routing: Routing, groups: Groups, batch: int, length: int) -> np.ndarray:
  """The weight with which every token reached every expert.

  Args:
    routing: of one layer or, with a leading axis L, of several.
    groups: how the router cut the batch.
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
    summed = combine.sum(-1) if stacked else combine.sum(-1)[None]
    table = np.stack([groups.join(layer, batch, length) for layer in summed])
    return table if stacked else table[0]
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
  layers, count = token.shape[:2]
  n = groups.size
  layer, group, *_ = np.indices(token.shape)
  real = token < n
  table = np.zeros((layers, count * n, experts), np.float32)
  np.add.at(table, (layer[real], group[real] * n + token[real], expert[real]), weight[real])
  table = np.stack([groups.join(layer.reshape(count, n, experts), batch, length) for layer in table])
  return table if stacked else table[0]
