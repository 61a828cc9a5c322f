"""Hugging Face's folders in and out: every number where it belongs, and one line for what is wrong with a folder."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from moe.config import ConfigError, build
from moe.convert.hugging_face import folders
from moe.convert.hugging_face.folders import from_folder, to_folder
from moe.convert.hugging_face.places import places_of
from moe.convert.hugging_face.settings import from_settings, to_settings
from moe.convert.hugging_face.tensor_files import NewTensorFiles, TensorFiles
from moe.convert.new_run import new_workdir, write_run
from moe.data import load_vocabulary
from moe.evaluation.continuation import continue_texts
from moe.evaluation.restore import restore, vocabulary_of
from moe.experts import MoE
from moe.models import ModelConfig
from moe.parallel.mesh import make_mesh
from moe.training.checkpoint import CheckpointError
from moe.training.experiment import load_config
from moe.training.init import InitSource, inherit
from moe.training.setup import Setup
from tests.convert.hf_folders import MODEL, SWITCH, T5, T5_1_1, VOCAB, tensors_of, write_folder
from tests.routing.naive import token_weights


def model_of(settings):
  return build(ModelConfig, from_settings(settings), "config.json")


def assert_same_tensors(found, expected):
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("settings", [T5, T5_1_1, SWITCH], ids=["t5", "t5_1_1", "switch"])
def test_there_and_back_every_bit_is_the_same(settings, tmp_path, capsys):
  """The second time from the folder that we wrote ourselves."""
  source = write_folder(tmp_path / "source", settings, shards=2)
  for turn in range(2):
    from_folder(source, tmp_path / f"run_{turn}")
    to_folder(tmp_path / f"run_{turn}", "best", tmp_path / f"out_{turn}")
    source = tmp_path / f"out_{turn}"
    assert_same_tensors(load_file(source / "model.safetensors"), tensors_of(settings))
    assert (source / "spiece.model").read_bytes() == MODEL.read_bytes()
  runs = [restore(tmp_path / f"run_{turn}") for turn in range(2)]
  assert runs[0].config.model == runs[1].config.model
  jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)
  written = json.loads((source / "config.json").read_text())
  unread = ("n_positions", "num_sparse_encoder_layers", "num_sparse_decoder_layers")
  assert {name: written.get(name) for name in settings if name not in unread} == {
    name: value for name, value in settings.items() if name not in unread
  }
  assert "parameters" in capsys.readouterr().out


def test_shorter_numbers_are_read_exactly(tmp_path):
  tensors = {
    name: tensor.astype(ml_dtypes.bfloat16 if i % 2 else np.float16)
    for i, (name, tensor) in enumerate(tensors_of(T5).items())
  }
  from_folder(write_folder(tmp_path / "source", T5, tensors), tmp_path / "run")
  to_folder(tmp_path / "run", "0", tmp_path / "out")
  wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
  assert_same_tensors(load_file(tmp_path / "out" / "model.safetensors"), wide)


def test_copies_of_the_embedding_and_an_unused_table_are_accepted(tmp_path):
  tensors = tensors_of(T5)
  table = tensors.pop("shared.weight")
  old = {
    "encoder.embed_tokens.weight": table,
    "decoder.embed_tokens.weight": table.copy(),
    "lm_head.weight": table.copy(),
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((8, 2), np.float32),
  }
  from_folder(write_folder(tmp_path / "source", T5, tensors | old), tmp_path / "run")
  np.testing.assert_array_equal(restore(tmp_path / "run").params["embedding"]["table"], table)


def test_a_t5_1_1_without_a_head_has_the_embedding_there(tmp_path):
  """As newer versions write it: shared, but not scaled."""
  settings = T5_1_1 | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
  from_folder(write_folder(tmp_path / "source", settings), tmp_path / "run")
  found = restore(tmp_path / "run")
  assert not found.config.model.tie_embeddings
  np.testing.assert_array_equal(found.params["embedding"]["head"], found.params["embedding"]["table"].T)


def test_what_a_config_says_of_the_model():
  model = model_of(SWITCH)
  assert (model.d_head, model.norm_epsilon, model.dropout, model.tie_embeddings) == (4, 1e-5, 0.1, True)
  assert (model.encoder.layers, model.decoder.layers) == (4, 3)
  assert model.encoder.has_experts == (False, True, False, True) and all(model.decoder.has_experts)
  router = model.encoder.moe.router
  assert (router.name, router.top_k, router.slots, router.jitter) == ("switch", 1, 5, 0.02)
  assert router.slots_per_expert(12, 3, training=True) == router.slots_per_expert(12, 3, training=False) == 5
  assert model_of(T5 | {"num_decoder_layers": None}).decoder.layers == 2
  forms = {"gelu": "gelu_exact", "gelu_new": "gelu", "gated-gelu": "geglu", "gated-silu": "swiglu"}
  assert {name: model_of(T5 | {"feed_forward_proj": name}).feed_forward for name in forms} == forms


def test_switch_agrees_with_its_own_layer(parity_dir):
  """With 6 slots per sequence: the tokens that are kept, their gates, and the layer's output."""
  reference = np.load(parity_dir / "hf_switch_mlp_relu.npz")
  sizes = {"num_layers": 1, "num_sparse_encoder_layers": 1, "d_model": 16, "d_ff": 32, "num_experts": 4}
  model = model_of(SWITCH | sizes | {"expert_capacity": 6})
  moe = model.encoder.moe
  layer = MoE(16, moe.num_experts, 32, moe.router, form=moe.feed_forward, rngs=nnx.Rngs(0))
  arrays = {
    "kernel": np.zeros((1, 16, 4), np.float32),
    **{n: np.zeros((1, 4, 16, 32), np.float32) for n in ("up", "down")},
  }
  for name, place in places_of(model).items():
    _, found, rest = name.partition("encoder.block.0.layer.1.mlp.")
    if found:
      place.put(arrays[place.path[-1]], reference[f"w_{rest}"])
  layer.router.kernel[...] = jnp.asarray(arrays["kernel"][0])
  layer.experts.up[...], layer.experts.down[...] = jnp.asarray(arrays["up"][0]), jnp.asarray(arrays["down"][0])
  y, report = layer(jnp.asarray(reference["in_x"]))
  weights = token_weights(report.routing, 32, 4)
  np.testing.assert_array_equal(~np.isnan(weights), reference["out_dispatch"] == 1)
  gates = reference["out_prob"][..., 0] * reference["out_kept"]
  np.testing.assert_allclose(np.nansum(weights, -1), gates, atol=1e-6)
  np.testing.assert_allclose(y, reference["out_y"], atol=1e-5)


def test_the_run_writes_text_and_another_run_can_begin_with_it(tmp_path):
  from_folder(write_folder(tmp_path / "source", T5), tmp_path / "run")
  trained = restore(tmp_path / "run")
  data = trained.config.data
  assert (data.inputs_length, data.objective.name, data.source.name) == (12, "text_to_text", "task")
  vocabulary = vocabulary_of(trained)
  assert (vocabulary.size, vocabulary.extra_ids) == (2148, 100)
  texts = [continue_texts(trained, vocabulary, [text], 4)[0] for text in ("def f(", "import ")]
  assert texts == continue_texts(trained, vocabulary, ["def f(", "import "], 4)
  stored = json.loads((tmp_path / "run" / "config.json").read_text())
  assert stored["data"]["vocabulary"] == str(tmp_path / "run" / "vocabulary.model")

  tree = {"init": {"workdir": str(tmp_path / "run")}, "data": {"source": "standard_library", "objective": "prefix_lm"}}
  sizes = {"inputs_length": 8, "targets_length": 8, "batch_size": 2}
  config = load_config(
    inherit(tree | {"data": tree["data"] | sizes, "train": {"steps": 1}, "seed": 0}, tmp_path / "new")
  )
  setup, source = Setup(config, make_mesh()), InitSource(config.init)
  source.check(
    setup.abstract, load_vocabulary(config.data.vocabulary, config.data.extra_ids), source.about["router_files"]
  )
  params, _ = source.restore(setup.abstract)
  assert jax.tree.structure(params) == jax.tree.structure(trained.params)
  jax.tree.map(np.testing.assert_array_equal, params, trained.params)


def ours(**model):
  """A run of ours with experts of Switch in both stacks."""
  stack = {"layers": 2, "moe": {"num_experts": 2, "feed_forward": "relu", "router": {"name": "switch"}}}
  sizes = {"vocab_size": 259, "d_model": 8, "d_ff": 12, "num_heads": 2, "d_head": 4, "feed_forward": "relu"}
  return {
    "seed": 0,
    "model": {"name": "encoder_decoder", **sizes, "encoder": stack, "decoder": stack} | model,
    "data": {
      "source": "standard_library",
      "vocabulary": "bytes",
      "extra_ids": 0,
      "inputs_length": 8,
      "targets_length": 8,
      "batch_size": 2,
    },
    "train": {"steps": 1},
    "optimizer": {"schedule": "constant"},
  }


def test_from_ours_and_back(tmp_path):
  """What is a factor here is a number of slots there: that of rows as long as in training."""
  config = load_config(ours())
  params = nnx.to_pure_dict(nnx.state(config.model.make(nnx.Rngs(0)), nnx.Param))
  write_run(new_workdir(tmp_path / "run"), config, params, {}, load_vocabulary("bytes", 0))
  to_folder(tmp_path / "run", "best", tmp_path / "out")
  settings = json.loads((tmp_path / "out" / "config.json").read_text())
  assert settings["expert_capacity"] == 8  # 2 * 8 / 2
  assert (settings["encoder_sparse_step"], settings["num_sparse_encoder_layers"]) == (2, 1)
  from_folder(tmp_path / "out", tmp_path / "again", "bytes")
  found = restore(tmp_path / "again")
  jax.tree.map(np.testing.assert_array_equal, found.params, params)
  assert found.config.model.encoder.has_experts == (False, True)
  assert found.config.model.d_ff == 12 and found.vocabulary["size"] == 259


def test_a_parameter_without_a_place_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
  from_folder(write_folder(tmp_path / "source", T5), tmp_path / "run")
  without = {name: place for name, place in places_of(model_of(T5)).items() if "encoder.final" not in name}
  monkeypatch.setattr(folders, "places_of", lambda model: without)
  with pytest.raises(ConfigError, match=r"config.model = \['encoder.norm.scale'\]: expected only parameters"):
    to_folder(tmp_path / "run", "best", tmp_path / "out")
  assert not (tmp_path / "out").exists()


MOE = {"num_experts": 2, "feed_forward": "relu", "router": {"name": "switch"}}
REFUSED = [
  ({"norm": "layer"}, "norm = 'layer': expected 'rms'"),
  ({"bias": True}, "bias = True: expected False"),
  ({"relative_bias": "per_layer"}, "relative_bias = 'per_layer': expected 'shared'"),
  ({"feed_forward": "geglu_exact", "encoder": {"layers": 2}, "decoder": {"layers": 2}}, "feed_forward = 'geglu_exact'"),
  ({"encoder": {"layers": 2, "moe": MOE | {"router": "expert_choice"}}}, "encoder.moe.router.name = 'expert_choice'"),
  ({"encoder": {"layers": 2, "moe": MOE | {"router": "gshard"}}}, "encoder.moe.router.top_k = 2: expected 1"),
  ({"encoder": {"layers": 2, "moe": MOE | {"shared_experts": 1}}}, "encoder.moe.shared_experts = 1: expected 0"),
  ({"encoder": {"layers": 2, "moe": MOE | {"bias": True}}}, "encoder.moe.bias = True: expected False"),
  ({"encoder": {"layers": 2, "moe": MOE | {"feed_forward": "gelu"}}}, "encoder.moe.feed_forward = 'gelu'"),
  ({"encoder": {"layers": 2, "moe": MOE | {"d_ff": 6}}}, "encoder.moe.d_ff = 6: expected the model's, 12"),
  ({"decoder": {"layers": 2, "depth": {}}, "allow_future_leakage": True}, "decoder.depth = DepthConfig("),
  ({"encoder": {"layers": 2, "moe": MOE | {"num_experts": 4}}}, "decoder.moe.num_experts = 2: expected 4"),
  (
    {"encoder": {"layers": 4, "moe": MOE | {"placement": {"name": "last", "n": 2}}}},
    r"encoder.moe.placement = \[2, 3\]: expected all layers, or 1, 1 \+ n",
  ),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said.split(" = ")[0] for _, said in REFUSED])
def test_what_they_cannot_express_is_refused_by_its_field(changes, said):
  model = load_config(ours(**changes)).model
  with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
    to_settings(model, {"encoder": 8, "decoder": 8})


def test_a_decoder_alone_is_refused():
  mapping = ours(name="decoder", decoder={"layers": 1})
  del mapping["model"]["encoder"]
  with pytest.raises(ConfigError, match="name = 'decoder': expected encoder_decoder"):
    to_settings(load_config(mapping).model, {"decoder": 16})


def test_of_two_capacities_it_is_the_larger_and_slots_are_not_cut_to_a_row():
  assert to_settings(load_config(ours()).model, {"encoder": 8, "decoder": 6})["expert_capacity"] == 8
  assert to_settings(model_of(SWITCH | {"expert_capacity": 20}), {"encoder": 8, "decoder": 6})["expert_capacity"] == 20


def test_a_stack_without_experts_beside_one_with_some():
  """A step of 0, as without it Hugging Face's code would make layer 1 sparse."""
  model = load_config(ours(decoder={"layers": 2})).model
  settings = to_settings(model, {"encoder": 8, "decoder": 8})
  assert (settings["decoder_sparse_step"], settings["num_sparse_decoder_layers"]) == (0, 0)
  again = model_of(settings)
  assert (again.encoder.has_experts, again.decoder.moe) == ((False, True), None)
  del settings["decoder_sparse_step"]
  assert model_of(settings).decoder.has_experts == (False, True)


def test_files_are_split_with_an_index(tmp_path):
  tensors = {name: np.full((4,), i, np.float32) for i, name in enumerate("abc")}
  files = NewTensorFiles(tmp_path, {name: (4,) for name in tensors}, shard_bytes=32)
  for name in "bca":
    files.put(name, tensors[name])
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
  assert index == {"metadata": {"total_size": 48}, "weight_map": {"a": first, "b": first, "c": second}}
  assert_same_tensors(load_file(tmp_path / first) | load_file(tmp_path / second), tensors)
  assert_same_tensors({name: TensorFiles(tmp_path).read(name) for name in "abc"}, tensors)


def without_safetensors(folder, *others):
  (folder / "model.safetensors").unlink()
  for other in others:
    (folder / other).write_bytes(b"")


def truncated(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def other_tensors(folder):
  tensors = tensors_of(T5)
  del tensors["encoder.final_layer_norm.weight"], tensors["decoder.final_layer_norm.weight"]
  tensors["classifier.weight"] = np.zeros(3, np.float32)
  tensors["shared.weight"] = tensors["shared.weight"][:-1]
  save_file(tensors, folder / "model.safetensors")


def one_tensor(name, value):
  return lambda folder: save_file(tensors_of(T5) | {name: value}, folder / "model.safetensors")


def tokenizer_alone(folder):
  (folder / "spiece.model").rename(folder / "tokenizer.json")


def settings(**changes):
  return lambda folder: (folder / "config.json").write_text(json.dumps(T5 | changes))


BAD_FOLDERS = [
  (
    lambda folder: without_safetensors(folder, "pytorch_model.bin"),
    "pytorch_model.bin is a pickle, .* not read: python",
  ),
  (without_safetensors, "expected model.safetensors, or model.safetensors.index.json and the files that it names"),
  (truncated, "model.safetensors': expected a whole file"),
  (
    other_tensors,
    "encoder.final_layer_norm.weight is missing; decoder.final_layer_norm.weight is missing; classifier.weight is"
    rf" surplus; shared.weight has the shape \[{VOCAB - 1}, 16\] and not \[{VOCAB}, 16\]",
  ),
  (
    one_tensor("lm_head.weight", np.ones((VOCAB, 16), np.float32)),
    "lm_head.weight = .*: expected those of shared.weight",
  ),
  (one_tensor("shared.weight", np.full((VOCAB, 16), np.nan, np.float32)), "'shared.weight': expected finite numbers"),
  (one_tensor("shared.weight", np.ones((VOCAB, 16), np.float64)), "'F64': expected one of F32, BF16, F16"),
  (tokenizer_alone, "expected spiece.model in it; --vocabulary names .* tokenizer.json is not read"),
  (lambda folder: (folder / "spiece.model").write_bytes(b"no"), "--vocabulary = .*: expected a SentencePiece model"),
  (lambda folder: (folder / "config.json").unlink(), "expected config.json in it"),
  (lambda folder: (folder / "config.json").write_text("{"), "config.json': expected JSON"),
  (settings(model_type="bert"), "config.json.model_type = 'bert': expected one of t5, mt5, switch_transformers"),
  (settings(feed_forward_proj="gated-relu"), "config.json.feed_forward_proj = 'gated-relu': expected one of relu,"),
  (settings(d_model=None), "config.json.d_model = None: is missing"),
  (settings(d_model="16"), "config.json.d_model = '16': expected a number"),
  (settings(pad_token_id=3), "config.json.pad_token_id = 3: expected 0"),
  (settings(vocab_size=2000), "config.json.vocab_size = 2000: expected at least 2148"),
]


@pytest.mark.parametrize(("change", "said"), BAD_FOLDERS, ids=range(len(BAD_FOLDERS)))
def test_a_bad_folder_is_one_line_and_nothing_is_written(change, said, tmp_path):
  folder = write_folder(tmp_path / "source", T5)
  change(folder)
  with pytest.raises(ConfigError, match=said) as caught:
    from_folder(folder, tmp_path / "run")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "run").exists()


def test_a_missing_shard_is_named(tmp_path):
  folder = write_folder(tmp_path / "source", T5, shards=2)
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(ConfigError, match=r"expected model-00002-of-00002\.safetensors, which .*index\.json names"):
    TensorFiles(folder)


def test_nothing_is_overwritten(tmp_path):
  folder = write_folder(tmp_path / "source", T5)
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "note").write_text("mine")
  with pytest.raises(ConfigError, match=r"--workdir = .*: expected a new folder"):
    from_folder(folder, tmp_path / "run")
  with pytest.raises(ConfigError, match=r"--folder = .*: expected a folder that does not exist"):
    to_folder(tmp_path / "run", "best", folder)


@pytest.mark.parametrize("number", [0, 5])
def test_of_a_damaged_checkpoint_no_folder_is_made(number, tmp_path):
  from_folder(write_folder(tmp_path / "source", T5), tmp_path / "run")
  path = tmp_path / "run" / "checkpoints" / "0" / "run" / "metadata"
  about = json.loads(path.read_text())
  about["checksums"]["model"][number] ^= 1
  path.write_text(json.dumps(about))
  with pytest.raises(CheckpointError, match="checkpoint 0 cannot be read: the checksums of its model differ"):
    to_folder(tmp_path / "run", "best", tmp_path / "out")
  assert not (tmp_path / "out").exists()
