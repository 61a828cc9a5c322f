"""V-MoE-L/16, Every-2: 32 experts in every second of 24 layers, 3.4B parameters (Riquelme et al. 2021), on ImageNet.

Groups are of eight pictures, whose patches with the highest gates are served first: the capacity can then be lowered in
evaluation, as `python -m moe.evaluate --capacities 0.5,1,2` shows. For a slice of accelerators.
"""

from ml_collections import ConfigDict

from configs.vision import base


def get_config() -> ConfigDict:
  router = {"name": "batch_priority", "capacity_factor": 2.1, "group_size": 8 * 197}
  return base.vision("l16", num_experts=32, router=router, placement={"name": "every_nth", "n": 2})
