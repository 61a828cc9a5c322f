"""The paper's dense 0.1B baseline."""

from configs.pretrain import base


def get_config():
  return base.language_model("0.1b")
