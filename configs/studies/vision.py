r"""The Vision Transformer of the study `images`, dense as it stands: the study puts experts in its layers.

    python -m moe.train --config configs/studies/vision.py --workdir runs/vision --config.data.source.data_dir=TFDS

20,000 parameters and 16 patches a picture, on MNIST: 600 steps of 128 pictures, half a minute on one core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  config.model.name = "vision"
  config.model.vocab_size = 10
  config.model.d_model = 32
  config.model.d_ff = 64
  config.model.num_heads = 2
  config.model.d_head = 16
  config.model.feed_forward = "gelu"
  config.model.bias = False  # those of experts cost FLOPs, for a width as small as this half as many again
  config.model.image_size = 28
  config.model.patch_size = 7
  config.model.channels = 1
  config.model.pooling = "mean"
  config.model.encoder = ConfigDict({"layers": 2})

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "image_dataset", "dataset": "mnist", "data_dir": ""})
  config.data.objective = ConfigDict({"name": "classification"})
  config.data.inputs_length = 16
  config.data.targets_length = 1
  config.data.batch_size = 128

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 0.006
  config.optimizer.schedule = ConfigDict({"name": "cosine", "warmup_steps": 50})

  config.train = ConfigDict()
  config.train.steps = 600
  config.train.log_every = 100
  config.train.eval_every = 150
  config.train.eval_batches = 8
  config.train.checkpoint_every = 1000
  config.train.keep = 1
  return config
