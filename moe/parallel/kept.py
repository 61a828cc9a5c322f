"""What the backward pass finds instead of recomputing it, by `model.remat`.

Arrays are marked where they are made, by functions that change no value. Products with weights are cheap to keep and
expensive to recompute, and so is what came from other devices. Attention's logits are products too, but larger than
what they are made of, and so is a table of position biases.
"""

import functools

import jax
from jax.ad_checkpoint import checkpoint_name

_PRODUCT, _WEIGHT = "product", "weight"
_names = jax.checkpoint_policies.save_only_these_names

# Marks a product with weights, or what came from other devices.
kept = functools.partial(checkpoint_name, name=_PRODUCT)
# Marks weights that were gathered from FSDP's shards.
gathered = functools.partial(checkpoint_name, name=_WEIGHT)

# By the value of `model.remat`, which is none of these if the backward pass finds everything.
POLICIES = {"full": None, "dots": _names(_PRODUCT), "dots_and_weights": _names(_PRODUCT, _WEIGHT)}
