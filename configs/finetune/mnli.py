r"""MNLI: does the premise entail or contradict the hypothesis? (Williams et al. 2018).

  python -m moe.train --config configs/finetune/mnli.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/mnli
"""

from configs.finetune import base


def get_config():
  return base.finetune("mnli", steps=base.STEPS["mnli"])
