r"""The decoder of the studies, dense as it stands: the studies put experts in place of its feed-forward networks.

    python -m moe.train --config configs/studies/decoder.py --workdir runs/decoder \
      --config.data.source.path="text/*.jsonl.xz"

0.15M parameters, 1,000 steps of 2,048 tokens: about a minute on one core. The vocabulary has 1,024 pieces, trained on
English Wikipedia articles. A small one leaves most parameters to the blocks and lets a small model see each piece
often, so that two million tokens suffice for sparse models to beat the dense one.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  config.model.name = "decoder"
  config.model.vocab_size = 1024
  config.model.d_model = 64
  config.model.d_ff = 128
  config.model.num_heads = 2
  config.model.d_head = 32
  config.model.decoder = ConfigDict({"layers": 2})

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "text", "path": "text/*.jsonl.xz"})
  config.data.vocabulary = "configs/vocabularies/english_1k.model"
  config.data.extra_ids = 0
  config.data.objective = "causal_lm"
  config.data.inputs_length = 0
  config.data.targets_length = 64
  config.data.batch_size = 32

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = ConfigDict({"name": "cosine", "warmup_steps": 100})

  config.train = ConfigDict()
  config.train.steps = 1000
  config.train.log_every = 100
  config.train.eval_every = 100
  config.train.eval_batches = 16
  config.train.checkpoint_every = 500
  config.train.keep = 1
  return config
