r"""WNLI: does the sentence follow once the pronoun is resolved? (Levesque et al. 2012; Wang et al. 2019).

  python -m moe.train --config configs/finetune/wnli.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/wnli
"""

from configs.finetune import base


def get_config():
  return base.finetune("wnli", steps=base.STEPS["wnli"])
