"""The model section of a config: what is refused, under which name, and what a model declares about itself."""

import dataclasses

import pytest

from moe.config import ConfigError, as_mapping, build
from moe.models import ModelConfig, MoEConfig, StackConfig
from moe.models.model_config import DepthConfig
from moe.models.placement import EveryNth, Last
from tests.models.tiny import ARCHITECTURES, DROPLESS, EXPERT_CHOICE, TIGHT_SWITCH, config, router, stack

SIZES = {"name": "decoder", "vocab_size": 8, "d_model": 4, "d_ff": 4, "num_heads": 1, "d_head": 4}
TIGHT = {"name": "switch", "capacity_factor": 0.5, "eval_capacity_factor": 0.5}


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"d_model": 0}, "d_model"),
    ({"dropout": 1.0}, "dropout"),
    ({"expert_dropout": 1.0}, "expert_dropout"),
    ({"relative_buckets": 6}, "relative_buckets"),
    ({"relative_max_distance": 16}, "relative_max_distance"),
  ],
)
def test_refused_fields_are_named(changes, field):
  with pytest.raises(ConfigError) as caught:
    config(**changes)
  assert caught.value.field == field


@pytest.mark.parametrize(
  ("changes", "field"),
  [
    ({"layers": 0}, "layers"),
    ({"layers": 3, "router": TIGHT_SWITCH}, "moe.placement.n"),
    ({"layers": 5, "router": EXPERT_CHOICE, "placement": EveryNth(3)}, "moe.placement.n"),
    ({"layers": 2, "router": EXPERT_CHOICE, "placement": Last(3)}, "moe.placement.n"),
    ({"router": TIGHT_SWITCH, "num_experts": 0}, "num_experts"),
    ({"router": TIGHT_SWITCH, "num_experts": -1}, "num_experts"),
    ({"router": TIGHT_SWITCH, "d_ff": -1}, "d_ff"),
    ({"router": TIGHT_SWITCH, "shared_experts": -1}, "shared_experts"),
  ],
)
def test_refused_fields_of_a_stack_are_named(changes, field):
  with pytest.raises(ConfigError) as caught:
    stack(**changes)
  assert caught.value.field == field


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"decoder": {"layers": 0}}, "config.model.decoder.layers = 0: expected from 1 to 1000"),
    (
      {"decoder": {"layers": 2, "moe": {"num_experts": 4}}},
      "config.model.decoder.moe.router = None: is missing and has no default",
    ),
    ({"decoder": {"layers": 2, "moe": {"router": TIGHT}}}, "config.model.decoder.moe.num_experts = None: is missing"),
    (
      {"decoder": {"layers": 2, "moe": {"num_experts": 4, "router": {"name": "swich"}}}},
      "config.model.decoder.moe.router.name = 'swich': expected one of adaptive_mixture, ",
    ),
    (
      {"decoder": {"layers": 2, "moe": {"num_experts": 4, "router": {"name": "switch", "top_k": 0}}}},
      "config.model.decoder.moe.router.top_k = 0: expected at least 1",
    ),
    (
      {"decoder": {"layers": 3, "moe": {"num_experts": 4, "router": TIGHT}}},
      "config.model.decoder.moe.placement.n = 2: expected a divisor of the 3 layers",
    ),
    (
      {"decoder": {"layers": 3, "moe": {"num_experts": 4, "router": TIGHT, "placement": {"name": "last", "n": 4}}}},
      "config.model.decoder.moe.placement.n = 4: expected at most the 3 layers",
    ),
    ({"name": "decoders"}, "config.model.name = 'decoders': expected one of "),
  ],
)
def test_errors_in_a_mapping_carry_the_whole_path(changes, message):
  with pytest.raises(ConfigError) as caught:
    build(ModelConfig, SIZES | {"decoder": {"layers": 2}} | changes, "config.model")
  assert str(caught.value).startswith(message)


@pytest.mark.parametrize("encoder", [{"layers": 2}, {"layers": 2, "moe": {"num_experts": 4, "router": "switch"}}])
def test_decoder_has_no_encoder(encoder):
  with pytest.raises(ConfigError) as caught:
    build(ModelConfig, SIZES | {"decoder": {"layers": 2}, "encoder": encoder}, "config.model")
  assert caught.value.field == "config.model.encoder"
  assert caught.value.expected.startswith("unknown field; DecoderConfig has ")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_non_causal_decoder_router_is_refused_with_both_ways_out(architecture):
  with pytest.raises(ConfigError, match=r"causal router.*allow_future_leakage=True") as caught:
    config(architecture, EXPERT_CHOICE)
  assert caught.value.field == "decoder.moe.router.name"
  assert caught.value.value == "expert_choice"


def test_leakage_can_be_allowed_and_is_then_declared():
  assert config("decoder", EXPERT_CHOICE, allow_future_leakage=True).leaks_future
  assert not config("decoder", TIGHT_SWITCH, allow_future_leakage=True).leaks_future
  assert not config("encoder_decoder", None, EXPERT_CHOICE).leaks_future


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"depth": {"capacity": 0.0}}, "depth.capacity = 0.0: expected more than 0 and less than 1"),
    ({"depth": {"capacity": 1.0}}, "depth.capacity = 1.0: expected more than 0 and less than 1"),
    ({"depth": {"every": 0}}, "depth.every = 0: expected at least 1"),
    ({"depth": {"every": 3}}, "depth.every = 3: expected a divisor of the 4 layers"),
    ({"depth": {"predictor_width": 0}}, "depth.predictor_width = 0: expected at least 1"),
    ({"depth": {"capacities": 0.5}}, "depth.capacities = 0.5: unknown field; DepthConfig has "),
    (
      {"depth": {}, "moe": {"num_experts": 4, "router": "hash"}},
      "moe.router.name = 'hash': expected a router that reads no token ids in a block that tokens may pass by",
    ),
    (
      {"depth": {}, "moe": {"num_experts": 4, "router": "rl_r"}},
      "moe.router.name = 'rl_r': expected a router that does not learn by REINFORCE in a block that tokens may pass by",
    ),
  ],
)
def test_refused_blocks_that_tokens_may_pass_by_are_named(changes, message):
  with pytest.raises(ConfigError) as caught:
    build(ModelConfig, SIZES | {"decoder": {"layers": 4} | changes, "allow_future_leakage": True}, "config.model")
  assert str(caught.value).startswith(f"config.model.decoder.{message}")


def test_such_routers_may_be_in_the_other_blocks():
  other = {"num_experts": 4, "router": "hash", "placement": {"name": "listed", "layers": [0, 2]}}
  sections = {"decoder": {"layers": 4, "depth": {}, "moe": other}, "allow_future_leakage": True}
  assert build(ModelConfig, SIZES | sections).decoder.kinds == ((True, False), (False, True)) * 2


def test_only_decoders_have_blocks_that_tokens_may_pass_by():
  with pytest.raises(ConfigError, match=r"^encoder\.depth = DepthConfig\(.*\): expected None: only a decoder has"):
    config("encoder_decoder", None, stack(depth=DepthConfig()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_choice_of_depth_that_sees_later_tokens_in_training_has_to_be_allowed(architecture):
  decoder = stack(depth=DepthConfig())
  with pytest.raises(ConfigError, match=r"^allow_future_leakage = False: expected True with decoder\.depth"):
    config(architecture, decoder)
  allowed = config(architecture, decoder, allow_future_leakage=True)
  assert allowed.trains_on_future and allowed.leaks_future and not allowed.evaluates_on_future


def test_a_causal_router_in_place_of_another_leaves_the_choice_of_depth():
  leaky = config("decoder", stack(EXPERT_CHOICE, depth=DepthConfig()), allow_future_leakage=True)
  twin = leaky.with_decoder_router(EXPERT_CHOICE.causal_twin())
  assert leaky.evaluates_on_future and not twin.evaluates_on_future
  assert twin.decoder.depth == DepthConfig() and twin.trains_on_future
  with pytest.raises(ConfigError, match="causal router"):
    dataclasses.replace(twin, decoder=leaky.decoder, allow_future_leakage=False)


def test_options_decide_whether_a_router_is_causal():
  with pytest.raises(ConfigError, match="token_choice"):
    config("decoder", router("token_choice", order="batch_priority"))


def test_mapping_becomes_a_config_with_routers():
  mapping = SIZES | {"decoder": {"layers": 2, "moe": {"num_experts": 4, "router": TIGHT}}}
  decoder = build(ModelConfig, mapping, "config.model").decoder
  assert decoder == StackConfig(layers=2, moe=MoEConfig(num_experts=4, router=TIGHT_SWITCH, placement=EveryNth(2)))
  assert decoder.has_experts == (False, True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_is_built_again_from_its_mapping(architecture):
  settings = config(architecture, stack(DROPLESS, 3, placement=Last(1)), dropout=0.1)
  mapping = as_mapping(settings)
  assert mapping["name"] == architecture
  assert mapping["decoder"]["moe"]["placement"] == {"name": "last", "n": 1}
  assert build(ModelConfig, mapping, "config.model") == settings


def test_error_in_a_mapping_about_causality_carries_the_whole_path():
  mapping = SIZES | {"decoder": {"layers": 2, "moe": {"num_experts": 4, "router": "expert_choice"}}}
  path = r"^config\.model\.decoder\.moe\.router\.name = 'expert_choice': expected a causal router"
  with pytest.raises(ConfigError, match=path):
    build(ModelConfig, mapping, "config.model")


def test_batches_that_a_router_cannot_divide_are_refused_with_its_path():
  encoder = stack(router("expert_choice", group_size=24))
  settings = config("encoder_decoder", stack(TIGHT_SWITCH), encoder)
  settings.check_batches(4, inputs_length=6, targets_length=5)
  with pytest.raises(
    ConfigError, match=r"^encoder\.moe\.router\.group_size = 24: expected a divisor of 4 x 8 = 32 tokens"
  ):
    settings.check_batches(4, inputs_length=8, targets_length=6)


def test_in_blocks_that_tokens_may_pass_by_routers_divide_the_tokens_that_are_taken():
  """Of 4 rows of 8 tokens 4 x 2, in groups of 8, and in the other MoE layers 4 x 8; of 4 x 12 they are 4 x 3."""
  decoder = stack(router("expert_choice", group_size=8), depth=DepthConfig(capacity=0.25), placement=EveryNth(1))
  settings = config("decoder", decoder, allow_future_leakage=True)
  settings.check_batches(4, inputs_length=0, targets_length=8)
  with pytest.raises(
    ConfigError, match=r"^decoder\.moe\.router\.group_size = 8: expected a divisor of 4 x 3 = 12 tokens"
  ):
    settings.check_batches(4, inputs_length=0, targets_length=12)
