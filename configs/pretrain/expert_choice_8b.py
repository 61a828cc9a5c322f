"""Expert choice as published, in the decoder: 8B with 64 experts. Its loss is not a language model's: it leaks."""

from configs.pretrain import base


def get_config():
  config = base.language_model("8b", 64, {"name": "expert_choice", "group_size": 4096})
  config.model.allow_future_leakage = True
  return config
