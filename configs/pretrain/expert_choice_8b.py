"""Expert choice as published, in the decoder: 8B with 64 experts. Its loss is not a language model's: it leaks.

A group is what one of 512 chips holds of the batch, two rows, so that no decision waits for another chip.
"""

from configs.pretrain import base


def get_config():
  config = base.language_model("8b", 64, {"name": "expert_choice", "group_size": 2048})
  config.model.allow_future_leakage = True
  return config
