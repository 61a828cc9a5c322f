r"""RTE: does the first sentence entail the second? (Dagan et al. 2005; Wang et al. 2019).

  python -m moe.train --config configs/finetune/rte.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/rte
"""

from configs.finetune import base


def get_config():
  return base.finetune("rte", steps=base.STEPS["rte"])
