r"""GShard top-2 with 64 experts and a causal queue (see `moe.routing.top_k`) in the 0.1B model, on C4.

For the paper's other sizes, set `--config.model.decoder.moe.num_experts` to 16, 32 or 128.

  python -m moe.train --config configs/pretrain/gshard_0_1b.py --workdir DISK/gshard_0_1b \
    --config.data.vocabulary=t5_cc_all_32000.model --config.data.source.data_dir=gs://BUCKET/tfds

Laid out for v5e 8x8: `python -m moe.plan --topology v5e:8x8 --config configs/pretrain/gshard_0_1b.py`
says how long a step takes. Not trained yet.
"""

from configs.pretrain import base


def get_config():
  return base.language_model("0.1b", 64, {"name": "causal_gshard"})
