import pytest

from moe.config import ConfigError, build
from moe.models import ModelConfig
from tests.models.tiny import EXPERT_CHOICE, TIGHT_SWITCH, config, router

SIZES = {"architecture": "decoder", "vocab_size": 8, "d_model": 4, "d_ff": 4, "num_heads": 1, "d_head": 4}


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"d_model": 0}, "d_model"),
    ({"moe_every": 0}, "moe_every"),
    ({"num_experts": -1}, "num_experts"),
    ({"dropout": 1.0}, "dropout"),
    ({"encoder_layers": 0}, "encoder_layers"),
    ({"relative_buckets": 6}, "relative_buckets"),
    ({"relative_max_distance": 16}, "relative_max_distance"),
    ({"num_experts": 4}, "num_experts"),
    ({"shared_experts": 1}, "shared_experts"),
    ({"decoder_router": TIGHT_SWITCH, "num_experts": 0}, "num_experts"),
    ({"decoder_router": TIGHT_SWITCH, "decoder_layers": 3}, "decoder_layers"),
    ({"encoder_router": EXPERT_CHOICE, "encoder_layers": 5, "moe_every": 3}, "encoder_layers"),
  ],
)
def test_refused_fields_are_named(changes, field):
  with pytest.raises(ConfigError) as caught:
    config(**changes)
  assert caught.value.field == field


@pytest.mark.parametrize(
  ("changes", "field"),
  [({"encoder_layers": 2}, "encoder_layers"), ({"encoder_router": EXPERT_CHOICE}, "encoder_router")],
)
def test_decoder_has_no_encoder(changes, field):
  with pytest.raises(ConfigError) as caught:
    config("decoder", **changes)
  assert caught.value.field == field


@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder"])
def test_non_causal_decoder_router_is_refused_with_both_ways_out(architecture):
  with pytest.raises(ConfigError, match=r"causal router.*allow_future_leakage=True") as caught:
    config(architecture, EXPERT_CHOICE)
  assert caught.value.field == "decoder_router.name"
  assert caught.value.value == "expert_choice"


def test_leakage_can_be_allowed_and_is_then_declared():
  assert config("decoder", EXPERT_CHOICE, allow_future_leakage=True).leaks_future
  assert not config("decoder", TIGHT_SWITCH, allow_future_leakage=True).leaks_future
  assert not config("encoder_decoder", None, EXPERT_CHOICE).leaks_future


def test_options_decide_whether_a_router_is_causal():
  with pytest.raises(ConfigError, match="token_choice"):
    config("decoder", router("token_choice", order="batch_priority"))


def test_mapping_becomes_a_config_with_routers():
  mapping = SIZES | {
    "decoder_layers": 2,
    "num_experts": 4,
    "decoder_router": {"name": "switch", "capacity_factor": 0.5, "eval_capacity_factor": 0.5},
  }
  assert build(ModelConfig, mapping, "config.model").decoder_router == TIGHT_SWITCH


def test_error_in_a_mapping_carries_the_whole_path():
  mapping = SIZES | {"decoder_layers": 2, "num_experts": 4, "decoder_router": {"name": "expert_choice"}}
  with pytest.raises(ConfigError, match=r"^config\.model\.decoder_router\.name = 'expert_choice': is not causal"):
    build(ModelConfig, mapping, "config.model")
