r"""QQP: do the two questions ask the same? (Quora).

  python -m moe.train --config configs/finetune/qqp.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/qqp
"""

from configs.finetune import base


def get_config():
  return base.finetune("qqp", steps=base.STEPS["qqp"])
