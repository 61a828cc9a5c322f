"""Text continued by a model: what it reads of a prompt, how much it writes, and that rows are independent."""

import pytest
from flax import nnx

from moe.config import ConfigError
from moe.data import make_vocabulary
from moe.evaluation.continuation import continue_texts
from moe.evaluation.decoding import Sampling
from moe.evaluation.restore import Trained, check_vocabulary
from moe.parallel.mesh import make_mesh
from moe.training.experiment import load_config
from moe.training.state import split
from tests.training.tiny import tiny_decoder, tiny_mapping, write_corpus


def untrained(tmp_path, **model) -> Trained:
  mapping = tiny_mapping(write_corpus(tmp_path / "corpus.jsonl"))
  if model.get("name") == "decoder":
    model = tiny_decoder(mapping)
    mapping["data"] |= {"objective": "causal_lm", "inputs_length": 0}
  mapping["model"] = model or mapping["model"]
  config = load_config(mapping)
  vocabulary = make_vocabulary(config.data)
  about = {"name": vocabulary.name, "size": vocabulary.size, "fingerprint": vocabulary.fingerprint}
  return Trained(config, 0, *split(config.model.make(nnx.Rngs(1))), about, make_mesh())


@pytest.fixture
def encoder_decoder(tmp_path):
  return untrained(tmp_path)


@pytest.fixture
def decoder(tmp_path):
  return untrained(tmp_path, name="decoder")


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
