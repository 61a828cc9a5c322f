"""Text continued by a model: what it reads of a prompt, how much it writes, and that rows are independent."""

import jax
import numpy as np
import pytest
from flax import nnx

from moe.config import ConfigError
from moe.data import make_vocabulary
from moe.evaluation.continuation import continue_prompts, continue_texts, read_prompts
from moe.evaluation.decoding import Sampling
from moe.evaluation.restore import Trained, check_vocabulary
from moe.parallel.mesh import make_mesh
from moe.routing import RouterConfig
from moe.training.experiment import load_config
from moe.training.state import split
from tests.slow import first_ones, slow
from tests.training.tiny import tiny_decoder, tiny_mapping, tiny_stack, write_corpus

# With prompts of no token, of one, and of more than a row.
PROMPTS = ["", "a", "an old oak", "seven grey owls watched", "the cat sat on a mat near the silent mill", "b", "zz"]


def untrained(tmp_path, *, decoder_only=False, encoder=None, decoder=None, objective=None) -> Trained:
  """A tiny model with its initial parameters, and router kernels large enough to choose."""
  mapping = tiny_mapping(write_corpus(tmp_path / "corpus.jsonl"))
  if decoder_only:
    mapping["model"] = tiny_decoder(mapping, decoder, allow_future_leakage=True)  # BASE and its like see it in training
    mapping["data"] |= {"objective": "causal_lm", "inputs_length": 0}
  else:
    mapping["model"] |= {"encoder": tiny_stack(encoder), "decoder": tiny_stack(decoder)}
  mapping["data"] |= {"objective": objective} if objective else {}
  config = load_config(mapping)
  vocabulary = make_vocabulary(config.data)
  about = {"name": vocabulary.name, "size": vocabulary.size, "fingerprint": vocabulary.fingerprint}
  graph, params, router_state = split(config.model.make(nnx.Rngs(1)))
  params = jax.tree.map_with_path(lambda path, x: 20 * x if "router" in jax.tree_util.keystr(path) else x, params)
  return Trained(config, 0, graph, params, router_state, about, make_mesh())


def written(trained: Trained, texts: list[str], length: int, rows: int = 16) -> np.ndarray:
  """int32 `[prompts, length]`, greedily."""
  prompts = read_prompts(trained.config, make_vocabulary(trained.config.data), texts)
  return np.stack(list(continue_prompts(trained, [prompt.ids for prompt in prompts], length, rows=rows)))


@pytest.fixture
def encoder_decoder(tmp_path):
  return untrained(tmp_path, encoder={"name": "expert_choice"})


@pytest.fixture
def decoder(tmp_path):
  return untrained(tmp_path, decoder_only=True)


IN_DECODERS = [
  {"name": "switch", "eval_capacity_factor": 0.5},
  {"name": "glam", "capacity_factor": 1.0},
  {"name": "hash", "capacity_factor": 1.0, "function": "bigram"},
  {"name": "prefix_rank", "slack": 0.0},
  {"name": "threshold", "slack": 1.0},
  {"name": "position_grouped"},
]
IN_ENCODERS = [
  {"name": "expert_choice"},
  {"name": "expert_choice", "group_size": 8},
  {"name": "expert_choice", "group_size": 32},
  {"name": "batch_priority", "capacity_factor": 0.5},
]


@pytest.mark.parametrize(
  "routers",
  first_ones(2, [{"decoder_only": True, "decoder": router} for router in IN_DECODERS])
  + first_ones(1, [{"encoder": router, "decoder": IN_DECODERS[0]} for router in IN_ENCODERS]),
  ids=lambda routers: "-".join(
    str(value) for router in routers.values() if router is not True for value in router.values()
  ),
)
def test_a_text_depends_on_its_prompt_and_the_model_alone(tmp_path, routers):
  """Not on the prompts beside it, on how many are continued at a time, or on how much is written (rows have 16)."""
  model = untrained(tmp_path, **routers)
  longest = written(model, PROMPTS, 64)
  np.testing.assert_array_equal(written(model, PROMPTS[::-1], 32, rows=3)[::-1], longest[:, :32])
  np.testing.assert_array_equal(written(model, PROMPTS[3:4], 32), longest[3:4, :32])
  assert len({tuple(ids) for ids in longest.tolist()}) > 1


# Of each way to decode one; `tests/routing/test_decode.py` decodes with every router from the first token on.
DECODED = ("switch", "hash", "prefix_rank", "position_grouped", "k_means", "moe_plus_plus", "dselect_k")


@pytest.mark.parametrize(
  "name",
  [
    name if name in DECODED else slow(name)
    for name, choice in sorted(RouterConfig.choices.items())
    if choice().is_causal(training=False)
  ],
)
def test_every_causal_router_continues_a_prompt_of_no_token_and_of_one(tmp_path, name):
  found = written(untrained(tmp_path, decoder_only=True, decoder={"name": name}), ["", "a"], 4)
  assert (found[:, 0] > 0).all() and found.max() < 259


@pytest.mark.parametrize(
  "router",
  [
    {"name": "expert_choice", "group_size": 32},
    slow({"name": "expert_choice"}),
    slow({"name": "capped_expert_choice"}),
    {"name": "soft_moe"},
  ],
  ids=lambda router: "-".join(map(str, router.values())),
)
def test_encoders_read_a_prompt_of_no_token_and_of_one(tmp_path, router):
  """Group sizes of training are for batches of training: here they are 2 rows of 16 tokens."""
  found = written(untrained(tmp_path, encoder=router), ["", "a"], 4)
  assert (found[:, 0] > 0).all() and found.max() < 259


def test_inputs_of_pairs_end_and_are_cut_as_in_training(tmp_path):
  """15 bytes and EOS: what comes after them changes nothing, what the 15th is does."""
  model = untrained(tmp_path, objective="text_to_text", encoder={"name": "expert_choice"})
  vocabulary = make_vocabulary(model.config.data)
  whole, same, other = (f"an old oak near{end}" for end in ("", " the mill", " and seven owls"))
  prompts = read_prompts(model.config, vocabulary, [whole, same, "an"])
  np.testing.assert_array_equal(prompts[0].ids, [*vocabulary.encode(whole), 1])
  np.testing.assert_array_equal(prompts[2].ids, [*vocabulary.encode("an"), 1])
  assert prompts[1].cut == "the model reads the first 15 of its 24 tokens, as in training"
  assert prompts[0].cut == prompts[2].cut == ""
  found = written(model, [whole, same, other, "an old oak neat"], 8)
  np.testing.assert_array_equal(found[0], found[1])
  np.testing.assert_array_equal(found[0], found[2])
  assert (found[0] != found[3]).any()


def test_an_encoder_reads_the_end_of_a_long_prompt(encoder_decoder):
  vocabulary, prompt = make_vocabulary(encoder_decoder.config.data), "the cat sat on a mat near the silent mill"
  width = encoder_decoder.config.data.inputs_length
  whole, end, start = continue_texts(encoder_decoder, vocabulary, [prompt, prompt[-width:], prompt[:width]], 12)
  assert whole == end != start


def test_prompts_of_unequal_lengths_are_continued_independently(decoder):
  vocabulary, prompts = make_vocabulary(decoder.config.data), ["a", "an old oak", "owls watched from an"]
  together = continue_texts(decoder, vocabulary, prompts, 8)
  assert together == [continue_texts(decoder, vocabulary, [prompt], 8)[0] for prompt in prompts]
  assert len(set(together)) > 1


def test_at_most_length_tokens_are_written(decoder):
  vocabulary = make_vocabulary(decoder.config.data)
  short, long = (continue_texts(decoder, vocabulary, ["grey ", "g"], length) for length in (3, 9))
  for a, b in zip(short, long):
    assert len(vocabulary.encode(a)) <= 9 and b.startswith(a.rstrip("\ufffd"))  # a cut character decodes to U+FFFD


def test_sampling_depends_only_on_its_seed(decoder):
  vocabulary = make_vocabulary(decoder.config.data)
  first, again, other = (
    continue_texts(decoder, vocabulary, ["owls"], 16, Sampling(1.0, seed=seed)) for seed in (1, 1, 2)
  )
  assert first == again != other


@pytest.mark.parametrize(
  ("prompts", "length", "field"),
  [([], 4, "prompt"), (["a"], 0, "length"), (["a"], -1, "length"), (["a"], 10**9, "length")],
)
def test_nothing_to_do_is_an_error(decoder, prompts, length, field):
  with pytest.raises(ConfigError, match=field):
    continue_texts(decoder, make_vocabulary(decoder.config.data), prompts, length)


def test_another_vocabulary_than_the_checkpoints_is_refused(decoder):
  class Other:
    name, size, fingerprint = "other.model", 100, "x"

  with pytest.raises(ConfigError, match="it has 259 tokens, this one 100"):
    check_vocabulary(decoder, Other())
  Other.size = 259
  with pytest.raises(ConfigError, match=r"expected the checkpoint's vocabulary, bytes$"):
    check_vocabulary(decoder, Other())
