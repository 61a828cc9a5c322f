"""Hugging Face's config.json as our model section, and the other way round.

Its capacity is a number of slots per expert and sequence, whatever the length: our `slots`. There, padding takes slots
too; here it never does, so that a padded sequence may keep tokens that are dropped there.
"""

from collections.abc import Mapping
from typing import Any

from moe.config import ConfigError, in_section, require
from moe.models import ModelConfig, StackConfig
from moe.routing import RouterConfig
from moe.routing.methods.token_choice import SwitchConfig, TokenChoiceConfig

TYPES = ("t5", "mt5", "switch_transformers")

_UNLIMITED = 2**31 - 1  # slots for any sequence

# `gelu_new` is the tanh approximation, and so is the gate of T5's `gated-gelu`.
_FORMS = {"relu": "relu", "gelu_new": "gelu", "gelu": "gelu_exact"}
_GATED_FORMS = {"gated-gelu": "geglu", "gated-gelu_new": "geglu", "gated-silu": "swiglu"}
_SIZES = {
  "vocab_size": "vocab_size",
  "d_model": "d_model",
  "d_ff": "d_ff",
  "num_heads": "num_heads",
  "d_kv": "d_head",
  "relative_attention_num_buckets": "relative_buckets",
  "relative_attention_max_distance": "relative_max_distance",
  "dropout_rate": "dropout",
  "layer_norm_epsilon": "norm_epsilon",
}
_DEFAULTS = {
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
  "dropout_rate": 0.1,
  "layer_norm_epsilon": 1e-6,
  "num_sparse_encoder_layers": 3,
  "num_sparse_decoder_layers": 3,
  "num_experts": 8,
  "expert_capacity": 64,
  "router_jitter_noise": 0.01,
  "router_bias": False,
  "router_z_loss_coef": 0.001,
  "router_aux_loss_coef": 0.001,
}
# What our models are, whatever their config.
_FIXED = {
  "is_encoder_decoder": True,
  "pad_token_id": 0,
  "eos_token_id": 1,
  "decoder_start_token_id": 0,
  "router_dtype": "float32",
}


def from_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The model section for a config.json of T5 or of a Switch Transformer.

  Raises:
    ConfigError: it describes another architecture, or one that our models do not have.
  """
  kind = settings.get("model_type")
  require(kind in TYPES, "model_type", kind, f"expected one of {', '.join(TYPES)}: T5 1.0, 1.1 or Flan, mT5, or Switch")
  for name, wanted in _FIXED.items():
    require(settings.get(name, wanted) == wanted, name, settings.get(name), f"expected {wanted!r}")
  model = {ours: _get(settings, theirs) for theirs, ours in _SIZES.items()}
  layers = {"encoder": _get(settings, "num_layers")}
  both = settings.get("num_decoder_layers") is None
  layers["decoder"] = layers["encoder"] if both else _get(settings, "num_decoder_layers")
  stacks: dict[str, Any] = {side: {"layers": number} for side, number in layers.items()}
  if kind == "switch_transformers":
    form = _choice(settings, "dense_act_fn", "relu", _FORMS)
    for side, stack in stacks.items():
      sparse = _sparse_layers(settings, side, stack["layers"])
      if sparse:
        placement = {"name": "listed", "layers": sparse}
        stack["moe"] = _moe(settings) | {"feed_forward": form, "placement": placement}
  else:
    form = _choice(settings, "feed_forward_proj", "relu", _FORMS | _GATED_FORMS)
  return {
    "name": "encoder_decoder",
    **model,
    **stacks,
    "feed_forward": form,
    # Whether logits are scaled, as ours are where they share the embedding. Newer files say it by a field of its own.
    "tie_embeddings": bool(settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))),
  }


def _get(settings: Mapping[str, Any], name: str) -> Any:
  """A number, or for `router_bias` whether there is one; a whole number where there is no default."""
  default = _DEFAULTS.get(name)
  value = settings.get(name, default)
  require(value is not None, name, None, "is missing and has no default")
  kinds: Any = {bool: bool, float: (int, float)}.get(type(default), int)
  fits = isinstance(value, kinds) and isinstance(value, bool) == (kinds is bool)
  require(fits, name, value, "expected true or false" if kinds is bool else "expected a number")
  return value


def _choice(settings: Mapping[str, Any], name: str, default: str, forms: Mapping[str, str]) -> str:
  value = settings.get(name, default)
  require(isinstance(value, str) and value in forms, name, value, f"expected one of {', '.join(forms)}")
  return forms[value]


def _sparse_layers(settings: Mapping[str, Any], side: str, layers: int) -> list[int]:
  """The layers of a stack with experts, as Hugging Face's code counts them: also one where none are asked for."""
  number = _get(settings, f"num_sparse_{side}_layers")
  step = layers // number if number > 0 else layers
  step = _get(settings, f"{side}_sparse_step") if f"{side}_sparse_step" in settings else step
  return [layer for layer in range(layers) if step == 1 or (step > 0 and layer % step == 1)]


def _moe(settings: Mapping[str, Any]) -> dict[str, Any]:
  router = {
    "name": "switch",
    "slots": _get(settings, "expert_capacity"),
    "jitter": _get(settings, "router_jitter_noise"),
    "router_bias": _get(settings, "router_bias"),
    "balance_loss": _get(settings, "router_aux_loss_coef"),
    "z_loss": _get(settings, "router_z_loss_coef"),
  }
  return {"num_experts": _get(settings, "num_experts"), "router": router}


def to_settings(model: ModelConfig, lengths: Mapping[str, int]) -> dict[str, Any]:
  """The config.json of a model.

  Args:
    model: of ours.
    lengths: tokens of a row in training, by stack: a capacity factor becomes the slots of such a row. There is one
      capacity for both stacks: the larger of the two.

  Raises:
    ConfigError: the model is neither a T5 nor a Switch Transformer; names the field.
  """
  require(model.name == "encoder_decoder", "name", model.name, "expected encoder_decoder, which T5 is")
  require(model.norm == "rms", "norm", model.norm, "expected 'rms': T5's norms have a scale only")
  require(not model.bias, "bias", model.bias, "expected False: T5's matrices have no biases")
  bias = model.relative_bias
  require(bias == "shared", "relative_bias", bias, "expected 'shared': T5 has one table of position biases per stack")
  for side, stack in model.stacks.items():
    require(stack.depth is None, f"{side}.depth", stack.depth, "expected None: T5's tokens go through all blocks")
  layers = {side: stack.layers for side, stack in model.stacks.items()}
  settings = {theirs: getattr(model, ours) for theirs, ours in _SIZES.items()}
  settings |= {"num_layers": layers["encoder"], "num_decoder_layers": layers["decoder"]}
  settings |= {"tie_word_embeddings": model.tie_embeddings, **_FIXED}
  sparse = {side: stack for side, stack in model.stacks.items() if stack.moe is not None}
  if not sparse:
    kind, forms, name, architecture = "t5", _FORMS | _GATED_FORMS, "feed_forward_proj", "T5"
    del settings["router_dtype"]
  else:
    kind, forms, name, architecture = "switch_transformers", _FORMS, "dense_act_fn", "SwitchTransformers"
    settings |= _to_moe(sparse, layers, model, lengths)
  theirs = {ours: name for name, ours in reversed(forms.items())}
  form = model.feed_forward
  require(form in theirs, "feed_forward", form, f"expected one of {', '.join(theirs)}, which {architecture} has")
  architectures = [f"{architecture}ForConditionalGeneration"]
  return {"architectures": architectures, "model_type": kind, name: theirs[form], **settings}


def _to_moe(
  sparse: Mapping[str, StackConfig], layers: Mapping[str, int], model: ModelConfig, lengths: Mapping[str, int]
) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for side, stack in sparse.items():
    with in_section(f"{side}.moe"):
      for name, value in _one_stack(stack, model, lengths[side]).items():
        other = found.setdefault(name, value)
        if name == "expert_capacity":  # factors of rows of other lengths
          found[name] = max(value, other)
          continue
        require(other == value, name, value, f"expected {other}, as in the encoder: Switch has one for both stacks")
  for side, number in layers.items():
    step = _sparse_step(side, sparse[side]) if side in sparse else 0
    found |= {f"{side}_sparse_step": step, f"num_sparse_{side}_layers": number // step if step else 0}
  return found


def _one_stack(stack: StackConfig, model: ModelConfig, length: int) -> dict[str, Any]:
  """What config.json says of the MoE layers of a stack, whose rows have `length` tokens."""
  moe = stack.moe
  dense = {"shared_experts": 0, "bias": False, "gate_scale": 1.0, "feed_forward": model.feed_forward}
  for name, wanted in dense.items():
    require(getattr(moe, name) == wanted, name, getattr(moe, name), f"expected {wanted!r}, as in Switch Transformers")
  require(moe.d_ff in (0, model.d_ff), "d_ff", moe.d_ff, f"expected the model's, {model.d_ff}, as in Switch")
  with in_section("router"):
    router = _as_switch(moe.router)
  if router.slots is not None:
    capacity = router.slots  # of long rows: shorter ones have as many as they have tokens
  else:
    capacity = _UNLIMITED if router.dropless else router.slots_per_expert(length, moe.num_experts, training=False)
  return {
    "num_experts": moe.num_experts,
    "expert_capacity": capacity,
    "router_jitter_noise": router.jitter,
    "router_bias": router.router_bias,
    "router_aux_loss_coef": router.balance_loss,
    "router_z_loss_coef": router.z_loss,
  }


def _as_switch(router: RouterConfig) -> TokenChoiceConfig:
  """The router, if it decides as that of Switch Transformers does.

  Raises:
    ConfigError: it does not.
  """
  if not isinstance(router, TokenChoiceConfig):
    raise ConfigError("name", router.name, f"expected {SwitchConfig.name}, the router of Switch Transformers")
  wanted = {"top_k": 1, "scores": "softmax", "noise": 0.0}
  if not router.dropless:
    wanted |= {"order": "token", "group_size": 0}
  for name, value in wanted.items():
    require(
      getattr(router, name) == value, name, getattr(router, name), f"expected {value!r}, as in Switch Transformers"
    )
  return router


def _sparse_step(side: str, stack: StackConfig) -> int:
  """The step that gives the MoE layers 1, 1 + step, ... of a stack, or all of them for 1.

  Raises:
    ConfigError: no step does.
  """
  has = list(stack.has_experts)
  for step in range(1, stack.layers + 1):
    if has == [step == 1 or layer % step == 1 for layer in range(stack.layers)]:
      return step
  listed = [layer for layer, experts in enumerate(has) if experts]
  raise ConfigError(f"{side}.moe.placement", listed, "expected all layers, or 1, 1 + n, 1 + 2n, ... for some n: Switch")
