r"""CommitmentBank: does the speaker of the premise commit to the hypothesis? (de Marneffe et al. 2019).

  python -m moe.train --config configs/finetune/cb.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/cb
"""

from configs.finetune import base


def get_config():
  return base.finetune("cb", steps=base.STEPS["cb"])
