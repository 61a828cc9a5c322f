r"""CoLA: is the sentence grammatical? (Warstadt et al. 2019).

  python -m moe.train --config configs/finetune/cola.py --config.init.workdir=runs/pretrained \
    --config.data.source.data_dir=TFDS --workdir runs/cola
"""

from configs.finetune import base


def get_config():
  return base.finetune("cola", steps=base.STEPS["cola"])
