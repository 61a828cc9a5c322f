"""Against PyTorch's own models, where they are installed: logits and greedy text, in both directions."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.convert.hugging_face.folders import from_folder, to_folder
from moe.evaluation.decoding import generate
from moe.evaluation.restore import restore
from tests.convert.hf_folders import MODEL, SWITCH, T5, T5_1_1, write_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Their cache fails where the decoder has more layers than the encoder.
LAYERS = {"num_layers": 3, "num_decoder_layers": 2}
FAMILIES = {
  "t5": ("T5", T5 | LAYERS),
  "t5_1_1": ("T5", T5_1_1 | LAYERS),
  # More slots than any text here has tokens: padding takes slots there.
  "switch": ("SwitchTransformers", SWITCH | {"expert_capacity": 20}),
}
LENGTHS = (9, 5)


@pytest.fixture(params=FAMILIES)
def family(request):
  return FAMILIES[request.param]


def theirs_in(folder, family):
  """Their model, and the logits and greedy ids of some inputs and targets."""
  model = getattr(transformers, f"{family[0]}ForConditionalGeneration").from_pretrained(folder).eval()
  inputs, mask, targets = texts()
  with torch.no_grad():
    given = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(mask)}
    logits = model(**given, decoder_input_ids=torch.tensor(np.pad(targets[:, :-1], ((0, 0), (1, 0))))).logits
    greedy = {"max_new_tokens": 8, "do_sample": False, "num_beams": 1, "decoder_start_token_id": 0}
    ids = model.generate(**given, **greedy).numpy()[:, 1:]
  return logits.numpy(), np.pad(ids, ((0, 0), (0, 8 - ids.shape[1])))


def ours_in(workdir):
  inputs, mask, targets = texts()
  model = restore(workdir).model
  batch = {
    "inputs": jnp.asarray(inputs, jnp.int32),
    "inputs_positions": jnp.asarray(np.arange(mask.shape[1]) * mask, jnp.int32),
    "inputs_segments": jnp.asarray(mask, jnp.int32),
    "targets": jnp.asarray(targets, jnp.int32),
    "targets_positions": jnp.tile(jnp.arange(targets.shape[1]), (len(targets), 1)),
    "targets_segments": jnp.ones(targets.shape, jnp.int32),
  }
  return np.asarray(model(batch, training=False).logits), np.asarray(generate(model, batch, 8, 8))


def texts():
  """Two inputs of these lengths with padding after them, their mask, and targets."""
  draw = np.random.default_rng(0)
  inputs, targets = draw.integers(2, 2048, (2, max(LENGTHS))), draw.integers(2, 2048, (2, 6))
  mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
  return inputs * mask, mask.astype(np.int64), targets


def assert_agree(ours, theirs):
  np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)
  np.testing.assert_array_equal(ours[1], theirs[1])


def test_a_model_of_theirs_is_the_same_here_and_there_again(family, tmp_path):
  name, settings = family
  torch.manual_seed(0)
  config = getattr(transformers, f"{name}Config")(**settings)
  model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
  model.save_pretrained(tmp_path / "theirs", safe_serialization=True)
  (tmp_path / "theirs" / "spiece.model").write_bytes(MODEL.read_bytes())
  expected = theirs_in(tmp_path / "theirs", family)
  from_folder(tmp_path / "theirs", tmp_path / "run")
  assert_agree(ours_in(tmp_path / "run"), expected)
  to_folder(tmp_path / "run", "best", tmp_path / "again")
  assert_agree(theirs_in(tmp_path / "again", family), expected)


def test_a_folder_of_ours_is_the_same_there(family, tmp_path):
  """Its T5 1.1 has a matrix of the output that is not the embedding."""
  from_folder(write_folder(tmp_path / "source", family[1]), tmp_path / "run")
  to_folder(tmp_path / "run", "best", tmp_path / "ours")
  assert_agree(ours_in(tmp_path / "run"), theirs_in(tmp_path / "ours", family))
