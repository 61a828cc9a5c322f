"""The paper's dense 8B baseline."""

from configs.pretrain import base


def get_config():
  return base.language_model("8b")
