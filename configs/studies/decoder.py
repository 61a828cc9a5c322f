r"""The decoder of the studies, dense as it stands: the studies put experts in place of its feed-forward networks.

    python -m moe.train --config configs/studies/decoder.py --workdir runs/decoder \
      --config.data.source.path="text/*.jsonl.xz"

0.3M parameters, about 10,000 tokens a second on one core. The vocabulary is of 1,024 pieces, trained on English
Wikipedia articles: a small one leaves most parameters to the blocks, and lets a small model see each piece often.
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
  config.model.num_heads = 4
  config.model.d_head = 16
  config.model.decoder = ConfigDict({"layers": 4})

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "text", "path": "text/*.jsonl.xz"})
  config.data.vocabulary = "configs/vocabularies/english_1k.model"
  config.data.extra_ids = 0
  config.data.objective = "causal_lm"
  config.data.inputs_length = 0
  config.data.targets_length = 128
  config.data.batch_size = 16

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = ConfigDict({"name": "cosine", "warmup_steps": 100})

  config.train = ConfigDict()
  config.train.steps = 3000
  config.train.log_every = 100
  config.train.eval_every = 250
  config.train.eval_batches = 32
  config.train.checkpoint_every = 1000
  config.train.keep = 1
  return config
