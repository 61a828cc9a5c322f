r"""A T5 of 2.8M parameters, pretrained by span corruption, for studies that a laptop can run.

    python -m moe.train --config configs/t5_mini.py --workdir runs/t5_mini \
      --config.data.source.path="text/*.jsonl.xz"

It is dense as it stands; `moe/studies/claims/transfer/finetune.py` gives its encoder experts of the same activated
FLOPs. The vocabulary is of 8,000 pieces, trained on English Wikipedia articles.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  config.model.name = "encoder_decoder"
  config.model.vocab_size = 8192  # 8,000 pieces and 100 sentinels, rounded up
  config.model.d_model = 128
  config.model.d_ff = 512
  config.model.num_heads = 4
  config.model.d_head = 32
  config.model.encoder = ConfigDict({"layers": 4})
  config.model.decoder = ConfigDict({"layers": 2})

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "text", "path": "text/*.jsonl.xz"})
  config.data.vocabulary = "configs/vocabularies/english_8k.model"
  config.data.extra_ids = 100
  config.data.objective = "span_corruption"
  config.data.inputs_length = 128
  config.data.targets_length = 32
  config.data.batch_size = 16

  config.optimizer = ConfigDict()
  config.optimizer.name = "adafactor"
  config.optimizer.learning_rate = 0.02  # relative to the size of each parameter
  config.optimizer.schedule = ConfigDict({"name": "cosine", "warmup_steps": 100})

  config.train = ConfigDict()
  config.train.steps = 10_000
  config.train.log_every = 50
  config.train.eval_every = 1000
  config.train.eval_batches = 64
  config.train.checkpoint_every = 500
  return config
