r"""T5 1.1 base with expert choice in the encoder, where it may see the future, and causal top-2 in the decoder.

  python -m moe.train --config configs/pretrain/expert_choice_t5.py --workdir DISK/expert_choice_t5 \
    --config.data.vocabulary=t5_cc_all_32000.model --config.data.source.data_dir=gs://BUCKET/tfds

Laid out for v5e 8x8: `python -m moe.plan --topology v5e:8x8 --config configs/pretrain/expert_choice_t5.py`
says how long a step takes. Not trained yet.
"""

from configs.pretrain import base


def get_config():
  expert_choice = {"name": "expert_choice", "group_size": 4096}
  return base.encoder_decoder(64, expert_choice, {"name": "glam", "capacity_factor": 2.0})
