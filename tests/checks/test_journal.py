"""The rows of a check: none stops the others, and the results file is whole after each."""

import json

import pytest

from moe.checks.journal import Finding, Journal


def test_a_failed_row_does_not_stop_the_others_and_every_row_is_on_disk_at_once(tmp_path, capsys):
  path = tmp_path / "results" / "check.json"
  journal = Journal({"device": "some"}, path)
  on_disk = []

  def look() -> Finding:
    on_disk.append(json.loads(path.read_text()))
    return Finding(values={"ratio": 1.5}, about="1.50 x dense")

  def crash() -> Finding:
    raise ValueError("first line\nsecond line")

  journal.add_all(
    "kernels", {"far": lambda: Finding(0.5, 1e-3, "y"), "crash": crash, "nan": lambda: Finding(float("nan"), 1e-3, "z")}
  )
  journal.add("speed", "look", look)
  assert [row["check"] for row in journal.failed] == ["far", "crash", "nan"]
  assert [(row["check"], row["ok"]) for row in on_disk[0]["rows"]] == [("far", False), ("crash", False), ("nan", False)]
  assert not on_disk[0]["complete"]
  journal.finish()
  found = json.loads(path.read_text())
  assert found["complete"] and found["settings"] == {"device": "some"}
  assert found["rows"][1]["exception"] == "ValueError: first line"
  assert found["rows"][2]["error"] == "nan" and found["rows"][3]["ratio"] == 1.5
  assert [row["check"] for row in journal.rows] == ["far", "crash", "nan", "look"]
  printed = capsys.readouterr().out
  assert printed.count("FAILED") == 3 and "second line" not in printed and "1.50 x dense" in printed


def test_ctrl_c_ends_it():
  def interrupt() -> Finding:
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    Journal({}).add_all("kernels", {"a": interrupt})
