"""What `model.remat = "dots"` keeps for the backward pass: products with weights, wherever they are made.

Attention's logits are products too, but larger than what they are made of, and so is a table of position biases: these
are made again.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

_NAME = "kept"

# Marks an array that is cheap to keep and expensive to make again; its value is unchanged.
kept = functools.partial(checkpoint_name, name=_NAME)
KEEP = jax.checkpoint_policies.save_only_these_names(_NAME)
