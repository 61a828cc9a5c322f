"""Config files: Python or JSON to nested mappings, with the overrides of a command line."""

import json

import pytest

from moe.config import ConfigError, override
from moe.config_file import fields_of, read_config, read_config_file, split_configs

PYTHON = """
from ml_collections import ConfigDict


def get_config():
  config = ConfigDict({"seed": 0, "mesh": {"data": 1}, "model": {"decoder": {"moe": {"router": "expert_choice"}}}})
  return config
"""
TREE = {"seed": 0, "mesh": {"data": 1}, "model": {"decoder": {"moe": {"router": "expert_choice"}}}}


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(PYTHON)
  return path


def given(path, *overrides):
  (config,), others = split_configs([f"--config={path}", *overrides])
  assert others == []
  return read_config(config)


def test_python_and_json_give_the_same_tree(config_file, tmp_path):
  stored = tmp_path / "config.json"
  stored.write_text(json.dumps(TREE))
  assert read_config_file(str(config_file)) == read_config_file(str(stored)) == TREE


def test_fields_may_stand_alone_where_the_main_has_a_config_of_its_own():
  line = ["main", "--config.seed=1", "--out=x", "--config.mesh.data=4"]
  (config,), others = split_configs(line, alone=True)
  assert others == ["main", "--out=x"]
  assert override(TREE, fields_of(config[1:])) == TREE | {"seed": "1", "mesh": {"data": "4"}}
  assert split_configs(["main"], alone=True) == ([["--config="]], ["main"])


def test_a_tilde_is_the_home_folder(config_file, monkeypatch):
  monkeypatch.setenv("HOME", str(config_file.parent))
  assert given("~/config.py") == TREE


def test_a_python_config_may_return_a_plain_mapping(tmp_path):
  path = tmp_path / "config.py"
  path.write_text("def get_config():\n  return {'seed': 1}\n")
  assert read_config_file(str(path)) == {"seed": 1}


def test_overrides_apply_to_the_config_before_them(config_file):
  line = [
    "main",
    "--config",
    config_file,
    "--out=x",
    "--config.seed=1",
    "--config",
    config_file,
    "--config.mesh.data=4",
  ]
  configs, others = split_configs(list(map(str, line)))
  assert others == ["main", "--out=x"]
  first, second = map(read_config, configs)
  assert first == TREE | {"seed": "1"}
  assert second == TREE | {"mesh": {"data": "4"}}


def test_an_override_may_hold_equals_signs(config_file):
  assert given(config_file, "--config.data.path=a=b")["data"] == {"path": "a=b"}


def test_a_section_that_is_only_a_name_can_be_given_fields(config_file):
  tree = given(config_file, "--config.model.decoder.moe.router.capacity_factor=1.0")
  assert tree["model"]["decoder"]["moe"]["router"] == {"name": "expert_choice", "capacity_factor": "1.0"}


def test_a_router_is_chosen_before_its_fields_are_set_whatever_the_order(config_file):
  router = "--config.model.decoder.moe.router"
  overrides = [f"{router}.capacity_factor=1.0", f"{router}.name=glam"]
  for line in (overrides, overrides[::-1]):
    assert given(config_file, *line)["model"]["decoder"]["moe"]["router"] == {"name": "glam", "capacity_factor": "1.0"}


def error_of(call, *arguments):
  with pytest.raises(ConfigError) as caught:
    call(*arguments)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_an_override_needs_a_config_before_it_and_a_value(config_file):
  assert error_of(split_configs, ["--config.seed=1"]) == "--config.seed = '1': expected --config FILE before it"
  line = [f"--config={config_file}", "--config.seed", "1"]
  assert error_of(split_configs, line) == "--config.seed = None: expected --config.seed=VALUE"


@pytest.mark.parametrize(
  ("name", "text", "said"),
  [
    ("none.py", None, "expected an existing file"),
    ("config.txt", "seed = 1", "expected a file that ends in .py or .json"),
    ("bad.json", "{", "expected JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ("list.json", "[1]", "expected a config of sections, got list"),
    ("empty.py", "", "expected a function get_config()"),
    ("number.py", "def get_config():\n  return 3", "expected a config of sections, got int"),
    ("fails.py", "\n\ndef get_config():\n  return {}['seed']", "line 4: KeyError: 'seed'"),
    ("syntax.py", "\ndef get_config(:\n", "line 2: SyntaxError: "),
    ("exits.py", "\nraise SystemExit(3)", "line 2: SystemExit: 3"),
    ("lines.py", "raise ValueError('two\\nlines')", "line 1: ValueError: two lines"),
    ("deep.json", "[" * 100_000, "expected JSON ("),
    ("imports.py", "import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
  ],
)
def test_a_file_that_gives_no_config_is_named_with_the_line_that_is_wrong(tmp_path, name, text, said):
  path = tmp_path / name
  if text is not None:
    path.write_text(text)
  assert error_of(read_config_file, str(path)).startswith(f"--config = '{path}': {said}")


def test_a_config_error_inside_a_config_file_is_reported_as_it_is(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    "from moe.config import ConfigError\ndef get_config():\n  raise ConfigError('width', 0, 'expected 1')"
  )
  assert error_of(read_config_file, str(path)) == "width = 0: expected 1"
