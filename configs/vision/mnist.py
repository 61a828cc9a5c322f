r"""A Vision Transformer with Soft MoE on MNIST: a minute or two on two CPU cores.

    python -m moe.train --config configs/vision/mnist.py --workdir runs/mnist --config.data.source.data_dir=TFDS

Your own pictures of 28 x 28 grey pixels, a folder for each class:

    python -m moe.train --config configs/vision/mnist.py --workdir runs/mine \
      --config.data.source.name=image_folder --config.data.source.path=my_pictures

`config.model.vocab_size` is the number of classes, `config.data.inputs_length` that of a picture's patches.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  config.model.name = "vision"
  config.model.vocab_size = 10
  config.model.d_model = 64
  config.model.d_ff = 128
  config.model.num_heads = 2
  config.model.d_head = 32
  config.model.feed_forward = "gelu"
  config.model.image_size = 28
  config.model.patch_size = 4
  config.model.channels = 1
  config.model.positions = "sincos"
  config.model.pooling = "mean"
  config.model.encoder = ConfigDict({"layers": 2})
  config.model.encoder.moe = ConfigDict({"num_experts": 49, "bias": True, "router": {"name": "soft_moe"}})

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "image_dataset", "dataset": "mnist"})
  config.data.objective = ConfigDict({"name": "classification", "crop": "pad", "padding": 2})
  config.data.inputs_length = 49
  config.data.targets_length = 1
  config.data.batch_size = 64

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 0.003
  config.optimizer.schedule = ConfigDict({"name": "cosine", "warmup_steps": 50})

  config.mesh = ConfigDict()

  config.train = ConfigDict()
  config.train.steps = 500
  config.train.log_every = 20
  config.train.eval_every = 250
  config.train.checkpoint_every = 250
  return config
