"""Shared by the vision configs: Vision Transformers with or without experts, and the recipe of V-MoE and Soft MoE.

Those models were trained on JFT, which is not public: here they are trained on ImageNet, prepared by TFDS in the folder
that `--config.data.source.data_dir` names. The recipe is that of the published code: patches normalised to [-1, 1], an
inverse square root schedule with a warmup of 10,000 steps, a weight decay of 0.03, gradients clipped to a norm of 1.
"""

from ml_collections import ConfigDict

# Layers, d_model, d_ff, heads, pixels of a patch: Dosovitskiy et al. 2021, table 1; Soft MoE, table 2.
SIZES = {
  "s16": (12, 384, 1536, 6, 16),
  "b16": (12, 768, 3072, 12, 16),
  "l16": (24, 1024, 4096, 16, 16),
  "h14": (32, 1280, 5120, 16, 14),
}
IMAGE_SIZE = 224


def vision(size: str, num_experts: int = 0, router: dict | None = None, placement: dict | None = None) -> ConfigDict:
  """A model of one of the published sizes on ImageNet; dense without a router.

  Args:
    size: a key of `SIZES`.
    num_experts: of a MoE layer.
    router: name and options.
    placement: of the MoE layers.
  """
  layers, d_model, d_ff, heads, patch = SIZES[size]
  config = ConfigDict()
  config.seed = 0

  config.model = ConfigDict()
  config.model.name = "vision"
  config.model.vocab_size = 1000
  config.model.d_model = d_model
  config.model.d_ff = d_ff
  config.model.num_heads = heads
  config.model.d_head = d_model // heads
  config.model.image_size = IMAGE_SIZE
  config.model.patch_size = patch
  config.model.pooling = "class_token"
  config.model.dtype = "bfloat16"
  config.model.remat = "dots"
  config.model.encoder = ConfigDict({"layers": layers})
  if router:
    config.model.encoder.moe = ConfigDict({"num_experts": num_experts, "router": router, "placement": placement})
    config.model.encoder.moe.feed_forward = "gelu_exact"
    config.model.encoder.moe.bias = True

  config.data = ConfigDict()
  config.data.source = ConfigDict(
    {"name": "image_dataset", "dataset": "imagenet2012", "validation_split": "validation"}
  )
  config.data.objective = ConfigDict({"name": "classification", "crop": "inception", "flip": True})
  config.data.inputs_length = (IMAGE_SIZE // patch) ** 2 + 1
  config.data.targets_length = 1
  config.data.batch_size = 1024
  config.data.streams = 64

  config.optimizer = ConfigDict()
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.03
  config.optimizer.schedule = ConfigDict({"name": "constant_rsqrt", "decay_start": 10_000, "warmup_steps": 10_000})

  config.mesh = ConfigDict()
  if router:
    config.mesh.expert = min(num_experts, 16)

  config.train = ConfigDict()
  config.train.steps = 300_000
  config.train.log_every = 100
  config.train.eval_every = 5_000
  config.train.checkpoint_every = 2_500
  return config
