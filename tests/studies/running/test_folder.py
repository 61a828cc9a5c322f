import json
import threading
import time

import pytest

from moe.config import ConfigError
from moe.studies.running import folder as module
from moe.studies.running.folder import Folder, StudyError, text_files
from moe.studies.study import Job, Result


def job(name, path="here", **fields):
  return Job(name, {"data": {"source": {"name": "text", "path": path}}, **fields})


def finish(folder, job):
  folder.write_result(Result(job.name, {}, job.compared, "abc", 1.0, 10, {}, {}))


def contents(path):
  return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_result_of_another_version_of_the_study_is_refused_with_what_has_changed(tmp_path):
  before = job("one", seed=0, train={"steps": 10, "decay": 1}, rates=(1, 2))
  finish(Folder(tmp_path), before)
  assert [result.name for result in Folder(tmp_path).results([before])] == ["one"]
  after = job("one", seed=1, train={"steps": 10}, rates=(1, 2), model={"layers": 2})
  with pytest.raises(StudyError) as error:
    Folder(tmp_path).results([after])
  assert str(error.value) == (
    f"{tmp_path / 'results' / 'one.json'} is the result of another version of the study: config.seed was 0, is 1; "
    "config.train.decay was 1, is None; config.model was None, is {'layers': 2}; "
    "choose another --workdir, or return to commit abc"
  )


def test_of_many_changes_the_first_ones_are_listed(tmp_path):
  finish(Folder(tmp_path), job("one"))
  with pytest.raises(StudyError, match=r"config\.a4 was None, is 1; and 3 more; choose"):
    Folder(tmp_path).results([job("one", **{f"a{i}": 1 for i in range(8)})])


def test_where_the_data_lie_is_no_part_of_a_study(tmp_path):
  finish(Folder(tmp_path), job("one", path="here"))
  assert Folder(tmp_path).result(job("one", path="there")).commit == "abc"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": "one"}'])
def test_a_damaged_result_is_refused_by_its_name(text, tmp_path):
  finish(Folder(tmp_path), job("one"))
  path = tmp_path / "results" / "one.json"
  path.write_text(text)
  with pytest.raises(StudyError, match=f"{path} cannot be read"):
    Folder(tmp_path).results([job("one")])


def test_a_result_is_read_once_however_often_one_looks(tmp_path, monkeypatch):
  jobs, read = [job(str(i)) for i in range(3)], []
  loads = json.loads
  monkeypatch.setattr(module.json, "loads", lambda text: read.append(text) or loads(text))
  folder = Folder(tmp_path)
  for one in jobs[:2]:
    finish(folder, one)
  read.clear()
  for _ in range(5):
    assert [one.name for one in folder.ready(jobs)] == ["2"]
  assert folder.is_finished("0") and not folder.is_finished("2") and read == []
  for _ in range(5):
    assert len(folder.results(jobs)) == 2
  results = [text for text in read if "commit" in text]
  assert len(results) == 2
  finish(folder, jobs[2])
  assert len(folder.results(jobs)) == 3


def test_a_new_folder_becomes_that_of_a_study_and_budget_and_stays_so(tmp_path):
  folder = Folder(tmp_path / "new")
  folder.check("finetune", "smoke")
  assert not folder.root.exists()
  folder.claim("finetune", "smoke")
  folder.check("finetune", "smoke")
  folder.check("finetune", "smoke", may_be_new=False)
  with pytest.raises(ConfigError, match="--budget=cpu, or a new one; it holds finetune with --budget=smoke"):
    folder.check("finetune", "cpu")
  with pytest.raises(ConfigError, match=r"expected the folder of leak with .*; it holds finetune"):
    folder.check("leak", "smoke")


def test_runs_that_have_read_another_text_are_not_mixed(tmp_path):
  for name, content in {"a/wiki.txt": "one", "a/novels.txt": "three", "b/wiki.txt": "two"}.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
  folder, first = Folder(tmp_path / "new"), text_files(f"{tmp_path}/a/*.txt")
  assert first == {"novels.txt": 5, "wiki.txt": 3} == text_files(str(tmp_path / "a"))
  folder.claim("decoder", "cpu")  # before it could be read
  folder.claim("decoder", "cpu", {"text": first})
  assert list(text_files(f"{tmp_path}/a/w*,{tmp_path}/a/n*")) == ["wiki.txt", "novels.txt"]
  folder.check("decoder", "cpu", {"text": first})
  folder.check("decoder", "cpu")  # as a report, which reads none
  assert folder.read == {"text": first}
  with pytest.raises(ConfigError) as error:
    folder.check("decoder", "cpu", {"text": text_files(f"{tmp_path}/b/*.txt")})
  wanted = f"expected novels.txt with 5 bytes, wiki.txt with 3 bytes: the runs in {folder.root} have read that"
  assert str(error.value) == f"--text = 'wiki.txt': {wanted}"


def test_runs_that_have_read_other_data_are_not_mixed(tmp_path):
  folder = Folder(tmp_path / "new")
  folder.claim("images", "cpu", {"text": {}, "data_dir": {"mnist/3.0.1 train": 60_000}})
  folder.check("images", "cpu", {"data_dir": {"mnist/3.0.1 train": 60_000}})
  with pytest.raises(ConfigError) as error:
    folder.check("images", "cpu", {"data_dir": {"mnist/3.0.1 train": 1_000}})
  wanted = f"expected mnist/3.0.1 train with 60,000: the runs in {folder.root} have read that"
  assert str(error.value) == f"--data_dir = 'mnist/3.0.1 train': {wanted}"


def test_one_process_at_a_time_prepares_what_runs_read(tmp_path):
  folder, order = Folder(tmp_path), []

  def prepare():
    with folder.alone():
      order.append("begin")
      time.sleep(0.2)
      order.append("end")

  threads = [threading.Thread(target=prepare) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert order == ["begin", "end"] * 2


@pytest.mark.parametrize("names", [["notes.txt"], ["config.json", "checkpoints"], ["results", "runs"]])
def test_a_folder_of_something_else_is_refused_and_stays_as_it_was(names, tmp_path):
  for name in names:
    (tmp_path / name).write_text("mine")
  before = contents(tmp_path)
  with pytest.raises(ConfigError, match=f"or a new one; it holds {', '.join(sorted(names))}"):
    Folder(tmp_path).check("finetune", "smoke")
  assert contents(tmp_path) == before


def test_what_is_no_study_has_nothing_to_report(tmp_path):
  for root in (tmp_path, tmp_path / "none"):
    with pytest.raises(ConfigError, match=r"expected the folder of finetune with --budget=smoke$"):
      Folder(root).check("finetune", "smoke", may_be_new=False)


@pytest.mark.parametrize("text", ["", "[]", '{"study": "finetune"}'])
def test_a_damaged_name_of_the_study_is_refused(text, tmp_path):
  (tmp_path / "study.json").write_text(text)
  with pytest.raises(StudyError, match=r"study\.json cannot be read"):
    Folder(tmp_path).check("finetune", "smoke")


def test_where_data_and_tables_lie_is_no_change_of_the_study_but_their_names_are(tmp_path):
  def hashed(folder, name="balanced.npz"):
    router = {"name": "hash", "function": "balanced", "table": f"{folder}/{name}"}
    return job("one", path=folder, model={"decoder": {"moe": {"router": router}}})

  finish(Folder(tmp_path), hashed("/here"))
  assert len(Folder(tmp_path).results([hashed("/there")])) == 1
  with pytest.raises(StudyError, match=r"config.model.decoder.moe.router.table was 'balanced.npz', is 'other.npz'"):
    Folder(tmp_path).results([hashed("/here", "other.npz")])
