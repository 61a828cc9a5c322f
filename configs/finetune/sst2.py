r"""SST-2: is the film review positive? (Socher et al. 2013).

  python -m moe.train --config configs/finetune/sst2.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/sst2
"""

from configs.finetune import base


def get_config():
  return base.finetune("sst2", steps=base.STEPS["sst2"])
