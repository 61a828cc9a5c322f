"""Ids represent text without loss, each a known number of its bytes."""

import pathlib

import numpy as np
import pytest

from moe.config import ConfigError, as_mapping, build
from moe.data import DataConfig, load_vocabulary, make_source, make_vocabulary
from tests.data.conftest import make_config, make_texts

PYTHON_2K = str(pathlib.Path(__file__).parents[2] / "configs" / "vocabularies" / "python_2k.model")


@pytest.fixture(params=["bytes", PYTHON_2K], ids=["bytes", "sentencepiece"])
def vocabulary(request):
  return load_vocabulary(request.param, 100)


def test_decoding_restores_the_text(vocabulary):
  for text in [*make_texts(20), "  leading", "trailing  \n", "", "\r\n\t", "中文 🙂"]:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_byte_lengths_sum_to_the_length_of_the_text(vocabulary):
  lengths = vocabulary.byte_lengths()
  assert lengths.shape == (vocabulary.size,)
  for text in [*make_texts(20), "中文 🙂"]:
    assert lengths[vocabulary.encode(text)].sum() == len(text.encode())


def test_special_ids_have_no_text(vocabulary):
  special = [0, 1, 2, *range(vocabulary.size - 100, vocabulary.size)]
  assert not vocabulary.byte_lengths()[special].any()
  ids = vocabulary.encode("text")
  assert vocabulary.decode([0, *ids, vocabulary.size - 1, 1]) == "text"


def test_encoding_many_is_encoding_each(vocabulary):
  texts = make_texts(10)
  for one, many in zip(map(vocabulary.encode, texts), vocabulary.encode_many(texts), strict=True):
    np.testing.assert_array_equal(one, many)
    assert many.dtype == np.int32


def test_bytes_are_numbered_as_in_byt5():
  vocabulary = load_vocabulary("bytes", 100)
  assert vocabulary.encode("é").tolist() == [0xC3 + 3, 0xA9 + 3]
  assert vocabulary.size == 359


def test_the_fingerprint_tells_vocabularies_apart():
  fingerprints = [load_vocabulary(name, extra).fingerprint for name in ("bytes", PYTHON_2K) for extra in (0, 100)]
  assert len(set(fingerprints)) == 4
  assert load_vocabulary(PYTHON_2K, 100).fingerprint == fingerprints[3]


def test_the_quickstarts_vocabulary_is_small_and_fits_python():
  vocabulary = load_vocabulary(PYTHON_2K, 0)
  assert vocabulary.size == 2048
  config = make_config("standard_library", vocabulary=PYTHON_2K)
  texts = list(make_source(config, "validation", make_vocabulary(config)).texts(0))
  ids = vocabulary.encode_many(texts)
  assert [vocabulary.decode(i) for i in ids] == texts
  assert sum(len(text.encode()) for text in texts) / sum(map(len, ids)) > 2.5


def test_t5s_own_vocabulary_gives_t5s_ids(data_dir):
  model = data_dir / "t5_vocab" / "t5_cc_all_32000.model"
  vocabulary = load_vocabulary(str(model), 100)
  assert vocabulary.size == 32100
  assert vocabulary.encode("The house is wonderful.").tolist() == [37, 629, 19, 1627, 5]


def test_a_home_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(pathlib.Path(PYTHON_2K).parent))
  assert load_vocabulary("~/python_2k.model", 0).fingerprint == load_vocabulary(PYTHON_2K, 0).fingerprint


@pytest.mark.parametrize("name", ["none.model", ""])
def test_an_error_names_the_whole_field(name):
  with pytest.raises(ConfigError, match=rf"^config\.data\.vocabulary = '{name}': expected 'bytes' or"):
    make_vocabulary(
      build(DataConfig, as_mapping(make_config("standard_library")) | {"vocabulary": name}, "config.data")
    )


def test_a_missing_vocabulary_is_named(tmp_path):
  with pytest.raises(
    ConfigError, match=r"vocabulary = '.*none\.model': expected 'bytes' or the path of a SentencePiece model"
  ):
    load_vocabulary(str(tmp_path / "none.model"), 0)


def test_a_file_that_is_not_a_vocabulary_is_named(tmp_path):
  (tmp_path / "text.model").write_text("no model")
  with pytest.raises(ConfigError, match=r"text\.model': expected a SentencePiece model"):
    load_vocabulary(str(tmp_path / "text.model"), 0)
