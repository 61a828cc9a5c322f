"""Switch top-1 with experts of the 0.1B model; `--config.model.num_experts=16` to 128 for the paper's other sizes."""

from configs.pretrain import base


def get_config():
  return base.language_model("0.1b", 64, {"name": "switch"})
