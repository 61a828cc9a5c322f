"""Small random folders as Hugging Face writes them; the names of the tensors are written out here once more."""

import json
import pathlib
import shutil

import numpy as np
from safetensors.numpy import save_file

MODEL = pathlib.Path(__file__).parents[2] / "configs" / "vocabularies" / "python_2k.model"
VOCAB = 2176  # the model has 2,048 pieces; with 100 sentinels there is room left, as in T5

T5 = {
  "model_type": "t5",
  "architectures": ["T5ForConditionalGeneration"],
  "vocab_size": VOCAB,
  "d_model": 16,
  "d_kv": 4,
  "d_ff": 24,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "num_heads": 2,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 16,
  "dropout_rate": 0.1,
  "layer_norm_epsilon": 1e-5,
  "feed_forward_proj": "relu",
  "is_encoder_decoder": True,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "decoder_start_token_id": 0,
  "n_positions": 12,
}
T5_1_1 = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Experts in the encoder's layers 1 and 3, and in every layer of the decoder.
SWITCH = {name: value for name, value in T5.items() if name != "feed_forward_proj"} | {
  "model_type": "switch_transformers",
  "architectures": ["SwitchTransformersForConditionalGeneration"],
  "dense_act_fn": "relu",
  "num_layers": 4,
  "num_experts": 3,
  "expert_capacity": 5,
  "num_sparse_encoder_layers": 2,
  "num_sparse_decoder_layers": 3,
  "router_jitter_noise": 0.02,
}


def tensors_of(settings: dict, seed: int = 0) -> dict[str, np.ndarray]:
  """Random tensors of a model with these settings."""
  draw = np.random.default_rng(seed)
  d, f, inner = settings["d_model"], settings["d_ff"], settings["num_heads"] * settings["d_kv"]
  switch = settings["model_type"] == "switch_transformers"
  gated = settings.get("feed_forward_proj", "").startswith("gated")
  shapes = {"shared.weight": (VOCAB, d)}
  if not settings.get("tie_word_embeddings", True):
    shapes["lm_head.weight"] = (VOCAB, d)
  for side, layers in (("encoder", settings["num_layers"]), ("decoder", settings["num_decoder_layers"])):
    attentions = ["SelfAttention", "EncDecAttention"][: 1 if side == "encoder" else 2]
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[table] = (settings["relative_attention_num_buckets"], settings["num_heads"])
    for layer in range(layers):
      block, last = f"{side}.block.{layer}.layer", len(attentions)
      for part, attention in enumerate(attentions):
        shapes |= {f"{block}.{part}.{attention}.{name}.weight": (inner, d) for name in "qkv"}
        shapes[f"{block}.{part}.{attention}.o.weight"] = (d, inner)
      shapes |= {f"{block}.{part}.layer_norm.weight": (d,) for part in range(last + 1)}
      if switch and (side == "decoder" or layer % 2 == 1):
        shapes[f"{block}.{last}.mlp.router.classifier.weight"] = (settings["num_experts"], d)
        for expert in range(settings["num_experts"]):
          shapes[f"{block}.{last}.mlp.experts.expert_{expert}.wi.weight"] = (f, d)
          shapes[f"{block}.{last}.mlp.experts.expert_{expert}.wo.weight"] = (d, f)
      else:
        network = f"{block}.{last}.{'mlp' if switch else 'DenseReluDense'}"
        shapes |= {f"{network}.{name}.weight": (f, d) for name in (("wi_0", "wi_1") if gated else ("wi",))}
        shapes[f"{network}.wo.weight"] = (d, f)
    shapes[f"{side}.final_layer_norm.weight"] = (d,)
  return {name: draw.standard_normal(shape, np.float32) / 4 for name, shape in shapes.items()}


def write_folder(folder: pathlib.Path, settings: dict, tensors: dict | None = None, shards: int = 1) -> pathlib.Path:
  """A folder with config.json, spiece.model, and the tensors in one file or in several with an index."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(settings))
  shutil.copy(MODEL, folder / "spiece.model")
  tensors = tensors_of(settings) if tensors is None else tensors
  if shards == 1:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
  files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
  for i, file in enumerate(files):
    save_file(dict(list(tensors.items())[i::shards]), folder / file, {"format": "pt"})
  where = {name: files[i % shards] for i, name in enumerate(tensors)}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
  return folder
