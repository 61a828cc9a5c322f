r"""Expert choice as published, in the decoder: 8B with 64 experts, on C4.

It sees the future inside a sequence, so its loss is not a language model's; every metric of the run says so. A group
is the two rows of the batch on one of the 512 chips, so that no decision waits for another chip.

  python -m moe.train --config configs/pretrain/expert_choice_8b.py --workdir DISK/expert_choice_8b \
    --config.data.vocabulary=t5_cc_all_32000.model --config.data.source.data_dir=gs://BUCKET/tfds

Laid out for v4 8x8x8: `python -m moe.plan --topology v4:8x8x8 --config configs/pretrain/expert_choice_8b.py`
says how long a step takes. Not trained yet.
"""

from configs.pretrain import base


def get_config():
  config = base.language_model("8b", 64, {"name": "expert_choice", "group_size": 2048})
  config.model.allow_future_leakage = True
  return config
