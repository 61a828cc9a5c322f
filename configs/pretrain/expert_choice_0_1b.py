"""Expert choice as published, in the decoder: 0.1B, `--config.model.num_experts=16` to 128 for the paper's sizes.

It sees the future inside a sequence, so its loss is not a language model's; every metric of the run says so.
"""

from configs.pretrain import base


def get_config():
  config = base.language_model("0.1b", 64, {"name": "expert_choice", "group_size": 4096})
  config.model.allow_future_leakage = True
  return config
