r"""BoolQ: is the answer to the question yes, by the passage? (Clark et al. 2019).

  python -m moe.train --config configs/finetune/boolq.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/boolq
"""

from configs.finetune import base


def get_config():
  return base.finetune("boolq", steps=base.STEPS["boolq"])
