r"""One model for all eleven tasks of Zhou et al. 2022, mixed in proportion to their sizes, as T5's multi-task models.

  python -m moe.train --config configs/finetune/glue_super_glue_11.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/eleven
"""

from configs.finetune import base


def get_config():
  return base.finetune("glue_super_glue_11", steps=20_000)
