"""Shared by the pretraining configs: the language model of Zhou et al. 2022, its recipe, and T5 1.1.

The paper's decoder-only models are trained on C4 here instead of GLaM's mixture, which is not public. Batch size and
learning rate are GLaM's (1M tokens, 0.01), since the paper gives none; the vocabulary is T5's 32,000 pieces, set by
`--config.data.vocabulary`.

`config.mesh` is for the slices in `SLICES`; `python -m moe.plan` shows that they suffice.
"""

from ml_collections import ConfigDict

# Layers, d_model, d_ff, heads, d_head: table 1 of the paper.
SIZES = {"0.1b": (12, 768, 3072, 12, 64), "8b": (32, 4096, 16384, 32, 128)}

# The slice that each size is laid out for: the paper's 8B models trained on 512 chips of TPU v4.
SLICES = {"0.1b": "v5e:8x8", "8b": "v4:8x8x8", "t5": "v5e:8x8"}


def language_model(size: str, num_experts: int = 0, router: dict | None = None) -> ConfigDict:
  """The paper's decoder: a MoE layer in every other block, or dense without a router.

  Args:
    size: "0.1b" or "8b".
    num_experts: 0 for dense.
    router: name and options of the decoder's router.
  """
  layers, d_model, d_ff, heads, d_head = SIZES[size]
  config = _recipe()
  config.model = ConfigDict()
  config.model.name = "decoder"
  config.model.vocab_size = 32_000
  config.model.d_model = d_model
  config.model.d_ff = d_ff
  config.model.num_heads = heads
  config.model.d_head = d_head
  config.model.relative_bias = "per_layer"
  config.model.dtype = "bfloat16"
  # 26 of the 31 GiB of a chip, at 8B: nothing is multiplied or gathered twice.
  config.model.remat = "dots_and_weights" if size == "8b" else "full"
  config.model.decoder = _stack(layers, num_experts, router)
  config.data.objective = "causal_lm"
  config.data.inputs_length = 0
  config.data.targets_length = 1024
  config.data.batch_size = 1024
  config.mesh = ConfigDict()
  # Rows are divided over it too, so it suits the dense 8B as well: FSDP splits its matrices into 64 shards, not 512.
  config.mesh.expert = 64 if size == "8b" else min(num_experts, 16) or 1
  config.mesh.fsdp = size == "8b"
  return config


def encoder_decoder(num_experts: int, encoder_router: dict, decoder_router: dict) -> ConfigDict:
  """T5 1.1 base, span corruption with T5's settings, a MoE layer in every other block."""
  config = _recipe()
  config.model = ConfigDict()
  config.model.name = "encoder_decoder"
  config.model.vocab_size = 32_128  # 32,000 pieces and 100 sentinels, rounded up as T5 does
  config.model.d_model = 768
  config.model.d_ff = 2048
  config.model.num_heads = 12
  config.model.d_head = 64
  config.model.tie_embeddings = False
  config.model.dtype = "bfloat16"
  config.model.remat = "full"
  config.model.encoder = _stack(12, num_experts, encoder_router, feed_forward="geglu")
  config.model.decoder = _stack(12, num_experts, decoder_router, feed_forward="geglu")
  config.data.objective = "span_corruption"
  config.data.extra_ids = 100
  config.data.inputs_length = 512
  config.data.targets_length = 114
  config.data.batch_size = 2048
  config.mesh = ConfigDict({"expert": 16})
  return config


def _stack(layers: int, num_experts: int, router: dict | None, **moe) -> ConfigDict:
  """A stack with experts in every second layer; dense without a router."""
  stack = ConfigDict({"layers": layers})
  if router:
    stack.moe = ConfigDict({"num_experts": num_experts, "router": router} | moe)
  return stack


def _recipe() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0

  config.data = ConfigDict()
  config.data.source = ConfigDict({"name": "task", "task": "c4/en:3.1.0"})
  config.data.vocabulary = "t5_cc_all_32000.model"
  config.data.extra_ids = 0
  config.data.streams = 64

  config.optimizer = ConfigDict()
  config.optimizer.name = "adafactor"
  config.optimizer.learning_rate = 0.01
  config.optimizer.schedule = ConfigDict({"name": "constant_rsqrt", "decay_start": 10_000})

  config.train = ConfigDict()
  config.train.steps = 500_000
  config.train.logits_z_loss = 1e-4
  config.train.log_every = 100
  config.train.eval_every = 5_000
  config.train.eval_batches = 50
  config.train.checkpoint_every = 2_500
  return config
