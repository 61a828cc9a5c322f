r"""QNLI: does the sentence answer the question? (Rajpurkar et al. 2016; Wang et al. 2019).

  python -m moe.train --config configs/finetune/qnli.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/qnli
"""

from configs.finetune import base


def get_config():
  return base.finetune("qnli", steps=base.STEPS["qnli"])
