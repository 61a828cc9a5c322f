r"""GLaM top-2 at 8B/64E, the baseline of the paper's step time comparison.

  python -m moe.train --config configs/pretrain/glam_8b.py --workdir DISK/glam_8b \
    --config.data.vocabulary=t5_cc_all_32000.model --config.data.source.data_dir=gs://BUCKET/tfds

Laid out for v4 8x8x8: `python -m moe.plan --topology v4:8x8x8 --config configs/pretrain/glam_8b.py`
says how long a step takes. Not trained yet.
"""

from configs.pretrain import base


def get_config():
  return base.language_model("8b", 64, {"name": "glam"})
