r"""The paper's dense 0.1B baseline, on C4.

  python -m moe.train --config configs/pretrain/dense_0_1b.py --workdir DISK/dense_0_1b \
    --config.data.vocabulary=t5_cc_all_32000.model --config.data.source.data_dir=gs://BUCKET/tfds

Laid out for v5e 8x8: `python -m moe.plan --topology v5e:8x8 --config configs/pretrain/dense_0_1b.py`
says how long a step takes. Not trained yet.
"""

from configs.pretrain import base


def get_config():
  return base.language_model("0.1b")
