"""ViT-H/14, dense: 632M parameters (Dosovitskiy et al. 2021), on ImageNet. For accelerators."""

from ml_collections import ConfigDict

from configs.vision import base


def get_config() -> ConfigDict:
  return base.vision("h14")
