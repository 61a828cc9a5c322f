"""ViT-S/16, dense: 22M parameters (Dosovitskiy et al. 2021), on ImageNet. For accelerators."""

from ml_collections import ConfigDict

from configs.vision import base


def get_config() -> ConfigDict:
  return base.vision("s16")
