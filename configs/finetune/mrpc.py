r"""MRPC: do the sentences mean the same? (Dolan and Brockett 2005).

  python -m moe.train --config configs/finetune/mrpc.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/mrpc
"""

from configs.finetune import base


def get_config():
  return base.finetune("mrpc", steps=base.STEPS["mrpc"])
