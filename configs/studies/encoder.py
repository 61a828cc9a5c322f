r"""The T5 of the studies, dense as it stands: the studies put experts in its encoder, where routers may look ahead.

    python -m moe.train --config configs/studies/encoder.py --workdir runs/encoder \
      --config.data.source.path="text/*.jsonl.xz"

The encoder reads the beginning of each row, the decoder predicts every token of the rest: a prefix language model.
Width, data and recipe are those of `configs/studies/decoder.py`. The decoder, the same for all methods, has one layer
and half the encoder's tokens. It learns late to read the encoder, and only then are experts worth something: hence
three times the steps, about three minutes on one core.
"""

from ml_collections import ConfigDict

from configs.studies import decoder


def get_config() -> ConfigDict:
  config = decoder.get_config()
  config.model.name = "encoder_decoder"
  config.model.encoder = ConfigDict({"layers": 2})
  config.model.decoder = ConfigDict({"layers": 1})
  config.data.objective = "prefix_lm"
  config.data.inputs_length = 64
  config.data.targets_length = 32
  config.train.steps = 3000
  config.train.eval_every = 300
  config.train.checkpoint_every = 1000
  return config
