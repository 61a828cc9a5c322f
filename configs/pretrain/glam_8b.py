"""GLaM's top-2 at 8B/64E, the model that the paper compares its step time with."""

from configs.pretrain import base


def get_config():
  return base.language_model("8b", 64, {"name": "glam"})
