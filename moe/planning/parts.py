"""The part of the model that an instruction computes, read from its operation name.

`jax.named_scope` marks the parts in the layers and in the train step. JAX writes the scopes into the name of every
operation made inside them, in the forward and the backward pass: `jit(step)/transpose(jvp(attention))/dot_general`.
"""

import re

# Scope -> part, as plans print it.
_PARTS = {
  "attention": "attention",
  "feed_forward": "feed-forward",
  "position_bias": "position bias",
  "vocabulary": "vocabulary",
  "router": "router",
  "dispatch": "dispatch and combine",
  "combine": "dispatch and combine",
  "experts": "experts",
  "optimizer": "optimizer",
}
MOE_PARTS = ("experts", "router", "dispatch and combine")


def part_of(op_name: str) -> str:
  """The part named by the innermost known scope of an operation name, "other" if there is none."""
  words = re.split(r"[/();]", op_name)
  return next((_PARTS[word] for word in reversed(words) if word in _PARTS), "other")
