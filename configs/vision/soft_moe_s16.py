"""Soft MoE S/16: 128 experts of one slot each in the last 6 of 12 layers (Puigcerver et al. 2023), on ImageNet.

933M parameters, with the compute of ViT-S/16. For a slice of accelerators.
"""

from ml_collections import ConfigDict

from configs.vision import base


def get_config() -> ConfigDict:
  return base.vision("s16", num_experts=128, router={"name": "soft_moe"}, placement={"name": "last", "n": 6})
