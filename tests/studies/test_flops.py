"""The FLOPs of train steps against hand counts, and of runs from what their records say was assigned."""

import functools

import pytest

from moe.config import ConfigError
from moe.studies.flops import StackFlops, StepFlops, run_flops, step_flops
from moe.training.experiment import load_config
from moe.training.metrics_file import read_metrics
from moe.training.trainer import train
from tests.training.tiny import tiny_decoder, tiny_mapping, write_corpus

B, T, D, F, H, W, V, E = 4, 8, 16, 32, 2, 8, 64, 4  # rows, their length, widths, heads, theirs, vocabulary, experts
N = B * T
PRODUCT = 2 * N * D * F  # the tokens through one matrix of a feed-forward network
EXPERT = 2 * D * F  # a row through one

ATTENTION = 3 * (2 * N * 4 * D * H * W + 2 * 2 * B * H * T * T * W)
# Of one table for the stack, of 32 buckets: looked up by a product, whose gradient is one more; in each layer the
# gradient is summed over the rows of the batch by a product.
BIAS = 2 * (2 * 32 * H * T * T) + 2 * (2 * B * H * T * T)
LOGITS = 3 * 2 * N * D * V
DENSE_LAYER, ROUTER = 3 * 2 * PRODUCT, 3 * 2 * N * D * E
ONE_DENSE_LAYER_OF_TWO = 2 * ATTENTION + BIAS + LOGITS + DENSE_LAYER
BALANCE = 2 * (2 * N * E)  # the loads and the mean probabilities of the balance loss; its gradient needs no product


def decoder(moe, depth=None, **train):
  return load_config(
    {
      "seed": 0,
      "model": {
        **{"name": "decoder", "vocab_size": V, "d_model": D, "d_ff": F, "num_heads": H, "d_head": W},
        **{"feed_forward": "gelu", "allow_future_leakage": True, "remat": train.pop("remat", "none")},
        "decoder": {"layers": 2, "depth": depth} | ({"moe": {"num_experts": E} | moe} if moe else {}),
      },
      "data": {
        **{"source": "standard_library", "vocabulary": "bytes", "objective": "causal_lm", "inputs_length": 0},
        **{"targets_length": T, "batch_size": B},
      },
      "optimizer": {},
      "train": {"steps": 10} | train,
    }
  )


def router(name, **fields):
  return {"router": {"name": name} | fields}


@functools.cache
def dropless(forward=False):
  return step_flops(decoder(router("dropless")), forward=forward)


def test_a_dense_decoder_in_closed_form():
  config = decoder(None)
  forward = 2 * ATTENTION // 3 + 2 * DENSE_LAYER // 3 + LOGITS // 3 + 2 * 32 * H * T * T
  assert step_flops(config) == StepFlops(ONE_DENSE_LAYER_OF_TWO + DENSE_LAYER, {})
  assert step_flops(config, forward=True) == StepFlops(forward, {})


@pytest.mark.parametrize("k", [2, 4])
def test_a_block_that_tokens_may_pass_by_computes_those_that_it_takes(k):
  """Each row has position biases of its own pairs, whose gradients are summed over that one row."""
  predictor, taken = 10, k / T
  attention = 3 * (2 * B * k * 4 * D * H * W + 2 * 2 * B * H * k * k * W)
  bias = 2 * (2 * 32 * H * T * T) + 2 * B * H * T * T + 2 * B * H * k * k
  scores = 3 * 2 * N * D
  # No gradient flows to what the predictor reads.
  predicted = 2 * (2 * N * D * predictor) + 3 * (2 * N * predictor)
  expected = ATTENTION + attention + bias + LOGITS + DENSE_LAYER + taken * DENSE_LAYER + scores + predicted
  found = step_flops(decoder(None, {"capacity": taken, "predictor_width": predictor}))
  assert found == StepFlops(expected, {})


def test_dropless_experts_in_such_blocks_are_refused():
  with pytest.raises(
    ConfigError, match=r"config\.model\.decoder\.depth = DepthConfig\(.*: expected None with dropless"
  ):
    step_flops(decoder(router("dropless"), {"capacity": 0.5}))


@pytest.mark.parametrize(
  ("moe", "slots", "beside"),
  [
    (router("expert_choice", capacity_factor=2.0), 2 * N, ROUTER),
    (router("glam", capacity_factor=2.0), 2 * N, ROUTER + BALANCE),
    (router("switch", capacity_factor=1.5), 1.5 * N, ROUTER + BALANCE),
    (router("switch", capacity_factor=1.25), B * E * 3, ROUTER + BALANCE),  # 2.5 slots in a row, rounded up
    (router("threshold", capacity_factor=1.0, slack=2.0), 2 * N, ROUTER + 2 * E),  # the mean of cutoffs, at the end
  ],
  ids=lambda value: value["router"]["name"] if isinstance(value, dict) else None,
)
def test_every_slot_counts_filled_or_empty(moe, slots, beside):
  experts = 3 * 2 * EXPERT * slots
  assert step_flops(decoder(moe)) == StepFlops(ONE_DENSE_LAYER_OF_TWO + beside + experts, {})


@pytest.mark.parametrize(
  ("moe", "beside", "products"),
  [
    (router("dropless"), ROUTER + BALANCE, 7),
    (router("hash"), 0, 7),
    (router("threshold", slack=None), ROUTER + 2 * E, 7),
    (router("dropless") | {"feed_forward": "geglu"}, ROUTER + BALANCE, 11),
  ],
  ids=["dropless", "hash", "threshold", "gated"],
)
def test_dropless_experts_count_by_their_assignments(moe, beside, products):
  """Two products forward and four backward, as for slots, and the first one again; of gated units there are two."""
  found = step_flops(decoder(moe))
  padding = E * 63 * products * EXPERT  # an expert's last block has 64 rows, one of which at least is filled
  assert found == StepFlops(ONE_DENSE_LAYER_OF_TWO + beside, {"decoder": StackFlops(1, products * EXPERT, padding)})
  assert found.of({"decoder": 2 * N}) == ONE_DENSE_LAYER_OF_TWO + beside + products * EXPERT * 2 * N


def test_forward_passes_of_the_same_rows_cost_the_same_with_and_without_slots():
  slots = step_flops(decoder(router("glam", capacity_factor=2.0)), forward=True)
  assert dropless(forward=True).dropless["decoder"].per_assignment == 2 * EXPERT
  assert dropless(forward=True).of({"decoder": 2 * N}) == slots.fixed


@pytest.mark.parametrize(("platform", "rows"), [("gpu", 64), ("tpu", 128)])
def test_accelerators_compute_as_much_per_assignment(monkeypatch, platform, rows):
  monkeypatch.setattr("moe.studies.flops.default_platform", lambda: platform)
  found = step_flops(decoder(router("dropless")))
  assert found.fixed == ONE_DENSE_LAYER_OF_TWO + ROUTER + BALANCE
  assert found.dropless["decoder"] == StackFlops(1, 7 * EXPERT, E * rows * 7 * EXPERT)


def test_micro_batches_change_nothing_but_padding():
  found = step_flops(decoder(router("dropless"), accumulation=2))
  padding = 2 * dropless().dropless["decoder"].padding
  assert found.dropless["decoder"] == StackFlops(1, 7 * EXPERT, padding)
  # The position biases are looked up in each.
  assert found.fixed == dropless().fixed + 2 * (2 * 32 * H * T * T)


def test_recomputation_counts_in_the_step_and_not_in_the_forward_pass():
  config = decoder(router("dropless"), remat="full")
  step = step_flops(config)
  assert step.dropless == dropless().dropless  # which recompute what they need anyway
  assert dropless().fixed < step.fixed < dropless().fixed + dropless(forward=True).fixed
  assert step_flops(config, forward=True) == dropless(forward=True)


def test_each_stack_has_its_own_coefficient():
  stack = {"layers": 2, "moe": {"num_experts": E} | router("dropless")}
  wide = {"layers": 3, "moe": {"num_experts": E, "d_ff": 2 * F, "placement": {"name": "last", "n": 2}}}
  wide["moe"] |= router("hash")
  config = load_config(
    {
      "seed": 0,
      "model": {
        **{"name": "encoder_decoder", "vocab_size": 259, "d_model": D, "d_ff": F, "num_heads": H, "d_head": W},
        **{"encoder": stack, "decoder": wide},
      },
      "data": {
        **{"source": "standard_library", "vocabulary": "bytes", "extra_ids": 0},
        **{"inputs_length": 16, "targets_length": T, "batch_size": B},
      },
      "optimizer": {},
      "train": {"steps": 10},
    }
  )
  found = step_flops(config).dropless
  assert [(name, of.layers, of.per_assignment) for name, of in found.items()] == [
    ("encoder", 1, 7 * EXPERT),
    ("decoder", 2, 7 * 2 * EXPERT),
  ]


FLOPS = StepFlops(1000, {"encoder": StackFlops(1, 10, 0), "decoder": StackFlops(2, 1, 0)})


def record(step, steps, encoder, decoder):
  return {
    **{"kind": "train", "step": step, "steps": steps, "encoder/tokens": 20, "decoder/tokens": 10},
    **{"encoder/layer_0/assignments": encoder},
    **{f"decoder/layer_{i}/assignments": value for i, value in enumerate(decoder)},
  }


def test_a_run_computes_what_its_records_say_was_assigned():
  records = [record(1, 1, 2.0, (1.0, 2.0)), {"kind": "validation", "step": 1}, record(3, 2, 1.0, (0.5, 0.0))]
  first, second = run_flops(FLOPS, records)
  assert (first.step, first.per_step, first.total) == (1, 1000 + 10 * 20 * 2 + 10 * 3, 1430)
  assert (second.step, second.per_step) == (3, (2000 + 10 * 20 * 1 + 10 * 0.5) / 2)
  assert second.total == 1430 + 2205


def test_the_records_of_a_trained_run_say_what_it_computed(tmp_path):
  often = {"steps": 3, "log_every": 2, "eval_every": 3, "checkpoint_every": 3}
  mapping = tiny_mapping(write_corpus(tmp_path / "corpus.jsonl"), **often)
  mapping["model"] = tiny_decoder(mapping, {"name": "dropless", "top_k": 3})
  mapping["data"] |= {"objective": "causal_lm", "inputs_length": 0}
  config = load_config(mapping)
  train(config, tmp_path / "run")
  records = read_metrics(tmp_path / "run" / "metrics.jsonl")
  tokens = sum(record["tokens"] for record in records if record["kind"] == "train")
  flops = step_flops(config)
  assert flops.dropless["decoder"].per_assignment == 7 * 2 * 16 * 32
  (_, last) = run_flops(flops, records)
  assert (last.step, last.total) == (3, pytest.approx(3 * flops.fixed + 7 * 2 * 16 * 32 * 3 * tokens, rel=1e-6))


def test_a_run_with_a_missing_record_is_refused():
  with pytest.raises(ConfigError, match=r"^steps = 2: expected a record of every step before step 4$"):
    run_flops(FLOPS, [record(1, 1, 2.0, (1.0, 2.0)), record(4, 2, 1.0, (0.5, 0.0))])
