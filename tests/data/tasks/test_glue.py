"""GLUE and SuperGLUE as text: literal examples, labels, answer files, and the real validation splits."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from moe.config import ConfigError
from moe.data import DataError, load_vocabulary
from moe.data.formats import seqio_registry
from moe.data.sources.task import TaskConfig
from moe.data.tasks import ScoredTask, TaskExample, open_scored_tasks
from moe.data.tasks.glue import ELEVEN, TASKS, mark_pronoun
from moe.data.tasks.registration import RegisteredTask, text_of

LENGTHS = {"inputs": 512, "targets": 32}


def texts(name: str, **row) -> tuple[str, str]:
  """A row of a task's data set as inputs and targets."""
  example = preprocess(name, **row)
  return example["inputs"].decode(), example["targets"].decode()


def preprocess(name: str, **row) -> dict:
  label = row.get("label", 0)
  dtype = tf.float32 if name == "stsb" else tf.int64
  row = {"idx": tf.constant(7)} | row | {"label": tf.constant(label, dtype)}
  return next(text_of(TASKS[name])(tf.data.Dataset.from_tensors(row)).as_numpy_iterator())


@pytest.mark.parametrize(
  ("name", "row", "inputs", "targets"),
  [
    ("boolq", {"passage": "P.", "question": "is q", "label": 1}, "boolq passage: P. question: is q", "True"),
    ("boolq", {"passage": "P.", "question": "is q", "label": 0}, "boolq passage: P. question: is q", "False"),
    ("cb", {"premise": "P.", "hypothesis": "H", "label": 0}, "cb hypothesis: H premise: P.", "entailment"),
    ("cb", {"premise": "P.", "hypothesis": "H", "label": 1}, "cb hypothesis: H premise: P.", "contradiction"),
    ("cb", {"premise": "P.", "hypothesis": "H", "label": 2}, "cb hypothesis: H premise: P.", "neutral"),
    ("cola", {"sentence": "S.", "label": 0}, "cola sentence: S.", "unacceptable"),
    ("cola", {"sentence": "S.", "label": 1}, "cola sentence: S.", "acceptable"),
    ("mnli", {"premise": "P", "hypothesis": "H", "label": 0}, "mnli hypothesis: H premise: P", "entailment"),
    ("mnli", {"premise": "P", "hypothesis": "H", "label": 1}, "mnli hypothesis: H premise: P", "neutral"),
    ("mnli", {"premise": "P", "hypothesis": "H", "label": 2}, "mnli hypothesis: H premise: P", "contradiction"),
    ("ax", {"premise": "P", "hypothesis": "H", "label": -1}, "mnli hypothesis: H premise: P", ""),
    ("mrpc", {"sentence1": "A", "sentence2": "B", "label": 1}, "mrpc sentence1: A sentence2: B", "equivalent"),
    ("mrpc", {"sentence1": "A", "sentence2": "B", "label": 0}, "mrpc sentence1: A sentence2: B", "not_equivalent"),
    ("qnli", {"question": "Q?", "sentence": "S", "label": 0}, "qnli question: Q? sentence: S", "entailment"),
    ("qnli", {"question": "Q?", "sentence": "S", "label": 1}, "qnli question: Q? sentence: S", "not_entailment"),
    ("qqp", {"question1": "A?", "question2": "B?", "label": 1}, "qqp question1: A? question2: B?", "duplicate"),
    ("qqp", {"question1": "A?", "question2": "", "label": 0}, "qqp question1: A? question2: ", "not_duplicate"),
    ("rte", {"sentence1": "A", "sentence2": "B", "label": 0}, "rte sentence1: A sentence2: B", "entailment"),
    ("rte", {"sentence1": "A", "sentence2": "B", "label": 1}, "rte sentence1: A sentence2: B", "not_entailment"),
    ("rte", {"sentence1": "A", "sentence2": "B", "label": -1}, "rte sentence1: A sentence2: B", ""),
    ("sst2", {"sentence": "fine . ", "label": 1}, "sst2 sentence: fine . ", "positive"),
    ("sst2", {"sentence": "poor . ", "label": 0}, "sst2 sentence: poor . ", "negative"),
    (
      "wic",
      {"sentence1": "A bed.", "sentence2": "Bed rock.", "word": "bed", "label": 0},
      "wic sentence1: A bed. sentence2: Bed rock. word: bed",
      "False",
    ),
    # WNLI numbers its labels the other way round.
    ("wnli", {"sentence1": "A", "sentence2": "B", "label": 0}, "wnli sentence1: A sentence2: B", "not_entailment"),
    ("wnli", {"sentence1": "A", "sentence2": "B", "label": 1}, "wnli sentence1: A sentence2: B", "entailment"),
    ("stsb", {"sentence1": "A", "sentence2": "B", "label": 3.25}, "stsb sentence1: A sentence2: B", "3.2"),
    ("stsb", {"sentence1": "A", "sentence2": "B", "label": 3.35}, "stsb sentence1: A sentence2: B", "3.4"),
    ("stsb", {"sentence1": "A", "sentence2": "B", "label": 5.0}, "stsb sentence1: A sentence2: B", "5.0"),
    ("stsb", {"sentence1": "A", "sentence2": "B", "label": 0.0}, "stsb sentence1: A sentence2: B", "0.0"),
    ("stsb", {"sentence1": "A", "sentence2": "B", "label": -1.0}, "stsb sentence1: A sentence2: B", ""),
    (
      "copa",
      {"premise": "It rained.", "choice1": "X.", "choice2": "Y.", "question": "effect", "label": 1},
      "copa choice1: X. choice2: Y. premise: It rained. question: effect",
      "choice2",
    ),
    (
      "multirc",
      {"paragraph": "<b>Sent 1: </b>One.<br>Two.", "question": "Q?", "answer": "A", "label": 1}
      | {"idx": {"paragraph": 1, "question": 2, "answer": 3}},
      "multirc question: Q? answer: A paragraph: Sent 1: One. Two.",
      "True",
    ),
    (
      "wsc",
      {"text": "Mark told Pete many lies about himself .", "span1_text": "Mark", "span2_text": "himself"}
      | {"span1_index": 0, "span2_index": 6, "label": 1},
      "wsc: Mark told Pete many lies about *himself* .",
      "Mark",
    ),
  ],
)
def test_a_row_becomes_the_text_of_the_paper(name, row, inputs, targets):
  assert texts(name, **row) == (inputs, targets)


def test_a_pronoun_is_marked_without_its_punctuation_even_where_the_row_counts_words_wrongly():
  assert mark_pronoun(b'He said "Good for him," .', b"him", 4) == 'He said "Good for *him*," .'
  assert mark_pronoun(b"it was to use it , but really", b"it", 3) == "it was to use *it* , but really"


def test_an_answer_counts_only_as_a_whole():
  task = TASKS["mnli"]
  assert [task.postprocess_fn(text) for text in ("neutral", " contradiction ", "neut", "", "neutral neutral")] == [
    1,
    2,
    -1,
    -1,
    -1,
  ]


def test_scores_are_numbers_and_what_is_none_is_minus_one():
  read = TASKS["stsb"].postprocess_fn
  assert [read(text) for text in ("3.4", "5", "high", "", "nan", "inf")] == [3.4, 5.0, -1.0, -1.0, -1.0, -1.0]
  # The truth is the score that people gave, not its rounded text.
  assert read("3.2", example={"label": 3.25}, is_target=True) == 3.25


@pytest.mark.parametrize(
  ("text", "noun", "same"),
  [
    ("Mark", "Mark", 1),
    ("the old man", "The man", 1),
    ("Mark", "Mark Twain", 1),
    ("Pete", "Mark", 0),
    ("Mark's hat", "Mark", 0),
    ("", "Mark", -1),
    ("the", "Mark", -1),
  ],
)
def test_a_named_noun_is_the_referent_whatever_its_article_and_case(text, noun, same):
  assert TASKS["wsc"].postprocess_fn(text, example={"targets_pretokenized": noun.encode()}) == same


def test_an_answer_to_multirc_knows_its_question():
  example = {"label": 1, "idx/paragraph": 2, "idx/question": 30, "idx/answer": 5}
  assert TASKS["multirc"].postprocess_fn("True", example=example, is_target=True) == {"value": 1, "group": (2, 30)}
  assert TASKS["multirc"].postprocess_fn("False", example=example) == {"value": 0, "group": (2, 30)}


def test_only_the_right_noun_is_learned():
  row = {"text": "Mark lies about himself .", "span1_text": "Mark", "span2_text": "himself", "span2_index": 3}
  wsc = TASKS["wsc"]
  assert wsc.is_learned(preprocess("wsc", **row, label=1), "here")
  assert not wsc.is_learned(preprocess("wsc", **row, label=0), "here")


def test_a_row_without_label_or_text_is_one_line_that_names_it():
  task = TASKS["rte"]
  with pytest.raises(DataError, match=r"^rte, split train, shard 0, example 3: has no label \(-1\)"):
    task.is_learned(preprocess("rte", sentence1="A", sentence2="B", label=-1), "rte, split train, shard 0, example 3")
  with pytest.raises(DataError, match=r"^here: is empty: expected text in sentence1 or sentence2"):
    task.is_learned(preprocess("rte", sentence1=" ", sentence2="\n"), "here")
  assert task.is_learned(preprocess("rte", sentence1="A", sentence2=""), "here")


def scored(name: str) -> ScoredTask:
  glue = TASKS[name]
  vocabulary = load_vocabulary("bytes", 0)
  return ScoredTask(name, glue.labels, glue.metric_fns, glue.metric, iter, glue.postprocess_fn, vocabulary, glue)


def examples(*numbers) -> list[TaskExample]:
  return [TaskExample(np.zeros(0, np.int32), "", None, {"idx": n} if np.isscalar(n) else n) for n in numbers]


@pytest.mark.parametrize(
  ("name", "split", "predictions", "file", "content"),
  [
    ("rte", "test", [1, 0], "RTE.tsv", "index\tprediction\n0\tentailment\n1\tnot_entailment\n"),
    ("qnli", "test", [1, 0], "QNLI.tsv", "index\tprediction\n0\tentailment\n1\tnot_entailment\n"),
    ("mnli", "test", [2, 1], "MNLI-m.tsv", "index\tprediction\n0\tneutral\n1\tcontradiction\n"),
    ("mnli", "test_mismatched", [2, 1], "MNLI-mm.tsv", "index\tprediction\n0\tneutral\n1\tcontradiction\n"),
    ("ax", "test", [2, 1], "AX.tsv", "index\tprediction\n0\tneutral\n1\tcontradiction\n"),
    ("cola", "test", [1, 0], "CoLA.tsv", "index\tprediction\n0\t0\n1\t1\n"),
    ("sst2", "test", [1, -1], "SST-2.tsv", "index\tprediction\n0\t0\n1\t1\n"),
    ("mrpc", "test", [0, 1], "MRPC.tsv", "index\tprediction\n0\t1\n1\t0\n"),
    ("qqp", "test", [0, 1], "QQP.tsv", "index\tprediction\n0\t1\n1\t0\n"),
    ("wnli", "test", [0, 1], "WNLI.tsv", "index\tprediction\n0\t1\n1\t0\n"),
    ("stsb", "test", [3.4, 9.0], "STS-B.tsv", "index\tprediction\n0\t5.000\n1\t3.400\n"),
    ("boolq", "test", [1, 0], "BoolQ.jsonl", '{"idx": 0, "label": "false"}\n{"idx": 1, "label": "true"}\n'),
    ("cb", "test", [1, 2], "CB.jsonl", '{"idx": 0, "label": "neutral"}\n{"idx": 1, "label": "contradiction"}\n'),
    ("copa", "test", [1, 0], "COPA.jsonl", '{"idx": 0, "label": 0}\n{"idx": 1, "label": 1}\n'),
    ("wic", "test", [1, 0], "WiC.jsonl", '{"idx": 0, "label": "false"}\n{"idx": 1, "label": "true"}\n'),
    ("wsc", "test", [1, 0], "WSC.jsonl", '{"idx": 0, "label": "False"}\n{"idx": 1, "label": "True"}\n'),
  ],
)
def test_answers_are_written_as_the_servers_take_them(name, split, predictions, file, content):
  """In the order of the rows' numbers: here row 1 comes first."""
  assert scored(name).server_file(examples(1, 0), predictions, split) == (file, content)


def test_answers_to_multirc_are_nested_by_paragraph_and_question():
  rows = [(0, 0, 1), (1, 2, 4), (0, 0, 0), (0, 1, 2)]
  features = [dict(zip(("idx/paragraph", "idx/question", "idx/answer"), row)) for row in rows]
  predictions = [{"value": value} for value in (1, -1, 0, 1)]
  name, content = scored("multirc").server_file(examples(*features), predictions)
  first = [
    {"idx": 0, "answers": [{"idx": 0, "label": 0}, {"idx": 1, "label": 1}]},
    {"idx": 1, "answers": [{"idx": 2, "label": 1}]},
  ]
  second = [{"idx": 2, "answers": [{"idx": 4, "label": 0}]}]
  assert name == "MultiRC.jsonl"
  assert [json.loads(line) for line in content.splitlines()] == [
    {"idx": 0, "passage": {"questions": first}},
    {"idx": 1, "passage": {"questions": second}},
  ]


# Of the validation split, by the data set's label number.
COUNTS = {
  "boolq": [1237, 2033],
  "cb": [23, 28, 5],
  "cola": [322, 721],
  "mnli": [3479, 3123, 3213],
  "mrpc": [129, 279],
  "qnli": [2702, 2761],
  "qqp": [4871, 2728],
  "rte": [146, 131],
  "sst2": [428, 444],
  "wic": [319, 319],
  "wnli": [40, 31],
  "copa": [55, 45],
  "wsc": [66, 38],
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_validation_split_has_as_many_of_each_label_as_the_data_set(name, data_dir):
  vocabulary = load_vocabulary("configs/vocabularies/python_2k.model", 100)
  [task] = open_scored_tasks(TaskConfig(name, data_dir=str(data_dir / "tfds")), vocabulary, LENGTHS)
  found = list(task.examples("validation"))
  assert np.bincount([example.target for example in found]).tolist() == COUNTS[name]
  one = found[-1]
  assert one.inputs.dtype == np.int32 and 1 not in one.inputs
  assert one.text.startswith("wsc:" if name == "wsc" else f"{name} ")
  assert one.inputs.tolist() == vocabulary.encode(one.text)[: LENGTHS["inputs"] - 1].tolist()
  # The truth itself has the best score.
  truth = [example.features["targets_pretokenized"].decode() for example in found]
  if name != "wsc":  # a row there may propose the wrong noun
    given = [task.postprocess(text, example) for text, example in zip(truth, found)]
    assert task.evaluate([example.target for example in found], given)[task.metric] == 1.0


def test_hidden_labels_have_no_target_and_cannot_be_learned(data_dir):
  config = TaskConfig("wnli", data_dir=str(data_dir / "tfds"), train_split="test")
  vocabulary = load_vocabulary("bytes", 0)
  [task] = open_scored_tasks(config, vocabulary, LENGTHS)
  found = list(task.examples("test"))
  assert len(found) == 146 and {example.target for example in found} == {None}
  name, content = task.server_file(found, [0] * len(found))
  assert name == "WNLI.tsv" and content.splitlines()[-1] == "145\t0"
  with pytest.raises(DataError, match="wnli, split test, shard 0, example 0: has no label"):
    next(seqio_registry.open_task(config, "train", vocabulary, LENGTHS, 0).blocks(0, 0, 0))


@pytest.mark.parametrize("name", ["cb", "super_glue/cb"])
def test_an_empty_part_of_a_split_is_one_line(name, data_dir):
  """Seqio would end the process."""
  config = TaskConfig(name, data_dir=str(data_dir / "tfds"), train_split="train[:0%]", text_key="premise")
  with pytest.raises(DataError) as caught:
    seqio_registry.open_task(config, "train", load_vocabulary("bytes", 0), LENGTHS, 0)
  assert str(caught.value) == f"split 'train[:0%]': holds no example of {name}"


def test_wsc_trains_on_the_rows_that_propose_the_right_noun(data_dir):
  config = TaskConfig("wsc", data_dir=str(data_dir / "tfds"))
  vocabulary = load_vocabulary("bytes", 0)
  source = seqio_registry.open_task(config, "train", vocabulary, LENGTHS, 0)
  assert sum(len(block) for block in source.blocks(0, 0, 0)) == 259
  [task] = open_scored_tasks(config, vocabulary, LENGTHS)
  parts = [[example.target for example in task.examples(part)] for part in ("train[:90%]", "train[90%:]")]
  assert [len(part) for part in parts] == [499, 55]
  assert sum(map(sum, parts)) == 259


def test_one_process_registers_the_tasks_for_several_vocabularies(data_dir):
  config = TaskConfig("cb", data_dir=str(data_dir / "tfds"))
  found = []
  for vocabulary in (load_vocabulary("bytes", 0), load_vocabulary("configs/vocabularies/python_2k.model", 0)) * 2:
    source = seqio_registry.open_task(config, "train", vocabulary, LENGTHS, 0)
    found.append(vocabulary.decode(next(source.blocks(0, 0, 0)).inputs[0]))
  assert found[0].startswith("cb hypothesis: ") and len({text[:60] for text in found}) == 1


def test_the_eleven_are_those_of_the_paper():
  assert set(ELEVEN) <= set(TASKS) and len(ELEVEN) == 11


@pytest.mark.parametrize("name", ["rte", "glue_super_glue_11"])
@pytest.mark.parametrize("scores", [False, True])
def test_a_task_that_is_not_prepared_says_where_it_looked_and_how_to_prepare_it(name, scores, tmp_path):
  config, vocabulary = TaskConfig(name, data_dir=str(tmp_path)), load_vocabulary("bytes", 0)
  with pytest.raises(ConfigError) as error:
    if scores:
      open_scored_tasks(config, vocabulary, LENGTHS)
    else:
      seqio_registry.open_task(config, "train", vocabulary, LENGTHS, 0)
  task, folder = ("rte", "glue/rte") if name == "rte" else ("boolq", "super_glue/boolq")
  assert error.value.value == task and f"{tmp_path}/{folder}/" in str(error.value)
  assert f"'tfds build {folder} --data_dir={tmp_path}' prepares it" in str(error.value)
  assert "\n" not in str(error.value)


def test_a_split_that_is_not_there_and_a_name_nearby_are_one_line(data_dir):
  where = {"data_dir": str(data_dir / "tfds")}
  vocabulary = load_vocabulary("bytes", 0)
  [task] = open_scored_tasks(TaskConfig("multirc", **where), vocabulary, LENGTHS)
  with pytest.raises(DataError, match=r"^split 'train': expected one of validation, the splits of multirc$"):
    next(task.examples("train"))
  [task] = open_scored_tasks(TaskConfig("mnli", **where), vocabulary, LENGTHS)
  with pytest.raises(DataError, match=r"^split 'test': expected one of train, validation, the splits of mnli$"):
    next(task.examples("test"))
  with pytest.raises(ConfigError, match="similar ones are mnli"):
    open_scored_tasks(TaskConfig("mnnli", **where), vocabulary, LENGTHS)


def test_a_home_directory_is_expanded(data_dir, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "tfds").symlink_to(data_dir / "tfds")
  [task] = open_scored_tasks(TaskConfig("rte", data_dir="~/tfds"), load_vocabulary("bytes", 0), LENGTHS)
  assert next(task.examples("validation")).target in (0, 1)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_vocabulary_in_a_bucket_is_read_by_us_and_not_by_tensorflow(bucket, scheme):
  shutil.copyfile("configs/vocabularies/english_1k.model", bucket / "v.model")
  ours = load_vocabulary(f"{scheme}://bucket/v.model", 100)
  feature = RegisteredTask(TASKS["rte"], ours, "").output_features["inputs"]
  assert feature.vocabulary.encode("No host waits.") == ours.encode("No host waits.").tolist()
  assert feature.vocabulary.vocab_size == ours.size
