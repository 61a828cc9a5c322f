r"""Expert choice as published, in the decoder: 0.1B with 64 experts, on C4.

It sees the future inside a sequence, so its loss is not a language model's; every metric of the run says so.
For the paper's other sizes, set `--config.model.decoder.moe.num_experts` to 16, 32 or 128.

  python -m moe.train --config configs/pretrain/expert_choice_0_1b.py --workdir DISK/expert_choice_0_1b \
    --config.data.vocabulary=t5_cc_all_32000.model --config.data.source.data_dir=gs://BUCKET/tfds

Laid out for v5e 8x8: `python -m moe.plan --topology v5e:8x8 --config configs/pretrain/expert_choice_0_1b.py`
says how long a step takes. Not trained yet.
"""

from configs.pretrain import base


def get_config():
  config = base.language_model("0.1b", 64, {"name": "expert_choice", "group_size": 4096})
  config.model.allow_future_leakage = True
  return config
