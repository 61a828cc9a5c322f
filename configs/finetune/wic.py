r"""WiC: does the word have the same sense in both sentences? (Pilehvar and Camacho-Collados 2019).

  python -m moe.train --config configs/finetune/wic.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/wic
"""

from configs.finetune import base


def get_config():
  return base.finetune("wic", steps=base.STEPS["wic"])
