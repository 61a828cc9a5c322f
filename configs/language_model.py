r"""Trains a small language model with experts, on the bytes of any text: minutes on two CPU cores, nothing to download.

    python -m moe.train --config configs/language_model.py --workdir runs/language_model

reads the Python standard library. Your own text, even a single file, whose end is then held out for validation:

    python -m moe.train --config configs/language_model.py --workdir runs/mine \
      --config.data.source.name=text --config.data.source.path=input.txt

The decoder routes by causal top-2 choice, as GLaM does; `--config.model.decoder.moe.router.name=prefix_rank` is expert
choice in a causal form. Any causal router will do; one that is not is refused.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  config.model.name = "decoder"
  config.model.vocab_size = 259  # the bytes and three special ids
  config.model.d_model = 128
  config.model.d_ff = 384
  config.model.num_heads = 4
  config.model.d_head = 32

  config.model.decoder = ConfigDict()
  config.model.decoder.layers = 4
  config.model.decoder.moe = ConfigDict()
  config.model.decoder.moe.num_experts = 8
  config.model.decoder.moe.router = ConfigDict({"name": "glam", "capacity_factor": 2.5})

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "standard_library"})
  config.data.vocabulary = "bytes"
  config.data.extra_ids = 0
  config.data.objective = "causal_lm"
  config.data.inputs_length = 0
  config.data.targets_length = 256
  config.data.batch_size = 8

  config.optimizer = ConfigDict()
  config.optimizer.name = "adafactor"
  config.optimizer.learning_rate = 0.1  # relative to the size of each parameter
  config.optimizer.schedule = ConfigDict({"name": "cosine", "warmup_steps": 40})

  config.mesh = ConfigDict()  # all devices, with the rows of a batch divided over them

  config.train = ConfigDict()
  config.train.steps = 1000
  config.train.log_every = 20
  config.train.eval_every = 500
  config.train.checkpoint_every = 250
  return config
