"""The page: one well-formed file without network requests, with labelled charts, in which user text is only text."""

import base64
import dataclasses
import hashlib
import re
import xml.etree.ElementTree as ElementTree

import pytest

from moe.report.rendering import render_report
from moe.report.sections import SECTIONS
from moe.report.sections.overview import flat_fields, router_text
from moe.report.seeds import by_config
from moe.report.types import Run
from tests.report.runs import TOKENS, make_layer, make_run
from tests.training.tiny import tiny_stack

ATTACK = "</script><script>alert('&')</script><img src=x onerror=\"alert(1)\">"
DECODER = {"name": "decoder"}
LEAKING = DECODER | {"decoder": tiny_stack({"name": "expert_choice"}), "allow_future_leakage": True}
DENSE = {"encoder": tiny_stack()}


def parsed(*runs: Run) -> ElementTree.Element:
  page = render_report(runs)
  doctype, rest = page.split("\n", 1)
  assert doctype == "<!doctype html>"
  return ElementTree.fromstring(rest)


def text_of(element) -> str:
  return "".join(element.itertext())


def section(root, title):
  (found,) = [part for part in root.iter("section") if part.find("h2").text == title]
  return found


@pytest.fixture(scope="module")
def two():
  many = {"encoder/layer_0": make_layer(experts=16, per_token=3, seed=1), "decoder/layer_0": make_layer(experts=16)}
  second = make_run(
    "second", many, **{side: tiny_stack({"name": "glam"}, num_experts=16) for side in ("encoder", "decoder")}
  )
  return parsed(make_run("first"), second)


def test_every_section_is_there_and_linked(two):
  titles = [part.find("h2").text for part in two.iter("section")]
  # All but causality, as these runs are records without a model that could be asked, and pictures.
  assert len(titles) == len(SECTIONS) - 2 and "Causality" not in titles
  assert [link.text for link in two.find("body/nav")] == titles
  assert [link.get("href") for link in two.find("body/nav")] == [f"#{part.get('id')}" for part in two.iter("section")]


def test_every_chart_has_a_title_and_a_label_on_both_axes(two):
  charts = list(two.iter("svg"))
  assert len(charts) > 15
  for chart in charts:
    classes = [text.get("class").split()[0] for text in chart.iter("text")]
    labels = [text.text for text in chart.iter("text") if text.get("class").startswith("label")]
    assert classes.count("title") == 1 and len(labels) == 2 and all(labels), ElementTree.tostring(chart)
    assert classes.count("tick") >= 4


def test_it_is_one_file_without_network_requests(two):
  for element in two.iter():
    assert element.tag not in ("link", "iframe", "object", "embed", "img", "image", "use")
    assert "src" not in element.attrib
    assert element.get("href", "#").startswith("#")
  page = render_report([make_run()])
  assert not re.search(r"https?:|//[a-z]|url\(|@import", page)


def test_the_browser_may_load_nothing_and_run_only_the_script_of_the_page(two):
  (policy,) = [element.get("content") for element in two.iter("meta") if element.get("http-equiv")]
  (script,) = two.iter("script")
  digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
  assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_ids_are_unique(two):
  ids = [element.get("id") for element in two.iter() if element.get("id")]
  assert len(ids) == len(set(ids))


def test_hostile_text_stays_text():
  run = make_run(ATTACK, texts=dict.fromkeys(range(6), ATTACK))
  trained = dataclasses.replace(run.trained, vocabulary=run.trained.vocabulary | {"name": ATTACK})
  root = parsed(dataclasses.replace(run, trained=trained))
  assert len(list(root.iter("script"))) == 1 and list(root.iter("img")) == []
  tokens = [span for span in section(root, "A passage, token by token").iter("span") if span.get("data-tip")]
  assert {span.text for span in tokens} == {ATTACK}
  assert ATTACK in text_of(root.find("body/header"))
  assert ATTACK in text_of(section(root, "Runs").find(".//table"))
  assert any(ATTACK in chart.get("aria-label") for chart in root.iter("svg"))


def test_the_passage_shows_every_token_with_its_experts_by_weight():
  layer = make_layer()
  passage = section(parsed(make_run(layers={"encoder/layer_0": layer})), "A passage, token by token")
  examples = [element for element in passage.iter("div") if element.get("class") == "code"]
  assert len(examples) == TOKENS // 12
  spans = [span for example in examples for span in example]
  assert [span.text for span in spans] == ["abcdef"[i] for i in layer.ids]
  assert {span.get("class") for span in spans} == {"t n2"}
  first = sorted(range(4), key=lambda expert: -layer.weights[0, expert])[:2]
  assert spans[0].get("data-tip") == ", ".join(f"expert {e} ({layer.weights[0, e]:.2f})" for e in first)


def test_only_the_chosen_layer_of_the_passage_is_shown():
  layers = {"encoder/layer_0": make_layer(), "encoder/layer_1": make_layer(seed=2)}
  passage = section(parsed(make_run(layers=layers)), "A passage, token by token")
  assert [option.text for option in passage.iter("option")] == list(layers)
  shown = [element.get("hidden") for element in passage.iter("div") if element.get("class") == "passage"]
  assert shown == [None, "hidden"]


def test_leakage_is_said_first_and_with_every_mention_of_a_loss():
  leaking = make_run("leaking", {"decoder/layer_0": make_layer()}, **LEAKING)
  root = parsed(make_run("honest"), leaking)
  runs = section(root, "Runs")
  (warning,) = [part for part in runs.iter("p") if part.get("class") == "warning"]
  assert text_of(warning).startswith("FUTURE LEAKAGE in leaking")
  legend = section(root, "Loss and perplexity").find("p")
  assert [text_of(key) for key in legend][:2] == ["honest", "leaking (future leakage)"]
  assert "FUTURE LEAKAGE" not in render_report([make_run("honest")])


def test_a_dense_run_has_curves_and_a_word_about_routers():
  root = parsed(make_run("plain", {}, **DENSE))
  assert [part.find("h2").text for part in root.iter("section")] == ["Runs", "Loss and perplexity", "Routers"]
  assert "Dense, without routers: plain." in text_of(root)
  beside = parsed(make_run("routed"), make_run("plain", {}, **DENSE))
  assert "Dense, without routers: plain." in text_of(section(beside, "Load of the experts"))


def test_the_configs_of_several_runs_are_compared_field_by_field():
  first, second = make_run("first"), make_run("second", d_ff=64)
  (table,) = [t for t in section(parsed(first, second), "Runs").iter("table") if t.find("thead/tr/th").text == "field"]
  assert [[text_of(cell) for cell in row] for row in table.find("tbody")] == [["model.d_ff", "32", "64"]]
  fields = flat_fields(first.trained.config)
  assert fields["model.encoder.moe.router"] == "expert_choice (defaults)" and fields["train.steps"] == "12"
  glam = make_run(decoder=tiny_stack({"name": "glam", "capacity_factor": 2.5})).trained.config.model.decoder_router
  assert router_text(glam) == "glam (capacity_factor = 2.5)"


def test_dead_experts_are_named():
  layer = make_layer()
  layer.chosen[:, 3] = False
  (row,) = section(parsed(make_run(layers={"encoder/layer_0": layer})), "Load of the experts").findall(".//tbody/tr")
  assert [text_of(cell) for cell in row][:4] == ["encoder/layer_0", "run", "1 of 4: 3", "1 of 4: 3"]


def test_an_even_load_is_said_in_words_instead_of_an_empty_map():
  layer = make_layer(per_token=4)
  load = section(parsed(make_run(layers={"encoder/layer_0": layer})), "Load of the experts")
  assert "an even load, 25% for every expert" in text_of(load) and list(load.iter("svg")) == []


def test_the_histogram_tips_are_the_observed_shares_and_the_binomial():
  tips = [e.get("data-tip") for e in section(parsed(make_run()), "Experts per token").iter() if e.get("data-tip")]
  assert "2 experts: 100.0% of tokens" in tips
  assert "2 experts by chance: 37.5%" in tips  # C(4, 2) / 2^4


def test_undecided_gates_are_even_over_the_experts_that_cost_nothing_too():
  moe = {"num_experts": 8, "router": {"name": "moe_plus_plus", "zero": 1, "copy": 1, "constant": 2}}
  for run, level in ((make_run(), "ln 4"), (make_run(encoder={"layers": 2, "moe": moe}), "ln 12")):
    tips = [mark.get("data-tip") for mark in section(parsed(run), "Entropy of the gates").iter()]
    assert f"run: {level}" in tips


def test_damaged_and_missing_checkpoints_are_named_next_to_the_churn():
  damaged = dataclasses.replace(make_run("damaged"), unreadable=[10])
  single = dataclasses.replace(make_run("single"), churn={"encoder/layer_0": []})
  part = section(parsed(damaged, single), "Churn between checkpoints")
  assert "damaged: checkpoints [10] are damaged and left out." in text_of(part)
  assert "single: only one checkpoint; config.train.keep" in text_of(part)
  tips = [dot.get("data-tip") for dot in part.iter("circle")]
  assert tips == ["damaged, up to step 20: 50.0%", "damaged, up to step 30: 25.0%"]


def test_records_that_json_could_not_hold_as_numbers_are_left_out():
  run = make_run()
  run.records[0]["loss"] = "nan"
  run.records[1]["encoder/layer_0/load"] = ["nan"] * 4
  root = parsed(run)
  assert "nan" not in " ".join(path.get("d", "") for path in root.iter("path")).lower()


def seeds(*losses: float) -> list[Run]:
  """Runs of one config with seeds 0, 1, ... whose losses end at these values, and another config's."""
  runs = []
  for seed, loss in enumerate(losses):
    run = make_run(f"seed{seed}")
    config = dataclasses.replace(
      run.trained.config, seed=seed, data=dataclasses.replace(run.trained.config.data, seed=seed)
    )
    for record in run.records:
      record |= {
        "loss": loss + 30 - record["step"],
        "tokens_per_second": 1000.0 + seed,
        "seconds": 2.0 * record["step"],
      }
    records = sorted(run.records, key=lambda record: record["step"])
    runs.append(dataclasses.replace(run, trained=dataclasses.replace(run.trained, config=config), records=records))
  return [*runs, make_run("other", d_ff=64)]


def test_runs_that_differ_in_seeds_alone_have_a_mean_and_a_spread():
  """1, 2 and 6 have the mean 3 and the standard error sqrt(7 / 3)."""
  (table,) = [t for t in section(parsed(*seeds(1, 2, 6)), "Runs").iter("table") if t.find("thead/tr/th").text == "runs"]
  ((name, numbers, step, loss, _, speed, time),) = [[text_of(cell) for cell in row] for row in table.find("tbody")]
  assert (name, numbers, step) == ("seed0 … seed2 (3 seeds)", "0, 1, 2", "30")
  assert loss == "3.0000 ± 1.5275 (1.0000 to 6.0000)"
  assert speed == "1,001 ± 1 (1,000 to 1,002)" and time == "0:01:00"


def with_vocabulary(run: Run, fingerprint: str) -> Run:
  """The run with a SentencePiece vocabulary, of which its folder has a copy."""
  data = dataclasses.replace(run.trained.config.data, vocabulary=f"{run.name}/vocabulary.model")
  config = dataclasses.replace(run.trained.config, data=data)
  vocabulary = run.trained.vocabulary | {"fingerprint": fingerprint}
  return dataclasses.replace(run, trained=dataclasses.replace(run.trained, config=config, vocabulary=vocabulary))


def test_seeds_have_one_vocabulary_though_each_run_has_its_own_copy():
  first, second, _ = seeds(1, 2)
  same = [with_vocabulary(first, "a"), with_vocabulary(second, "a")]
  other = [with_vocabulary(first, "a"), with_vocabulary(second, "b")]
  assert [len(group.runs) for group in by_config(same)] == [2]
  assert [len(group.runs) for group in by_config(other)] == [1, 1]
  assert fields_that_differ(same) == ["seed", "data.seed"]
  assert fields_that_differ(other) == ["seed", "data.vocabulary", "data.seed"]


def fields_that_differ(runs: list[Run]) -> list[str]:
  tables = section(parsed(*runs), "Runs").iter("table")
  return [
    text_of(row[0]) for table in tables if table.find("thead/tr/th").text == "field" for row in table.find("tbody")
  ]


def test_curves_of_several_seeds_are_their_mean_within_their_range():
  loss = section(parsed(*seeds(1, 2, 6)), "Loss and perplexity")
  assert [text_of(key) for key in loss.find("p")][:2] == ["seed0 … seed2 (3 seeds)", "other"]
  chart = next(loss.iter("svg"))
  tips = [dot.get("data-tip") for dot in chart.iter("circle")]
  assert "seed0 … seed2 (3 seeds), validation at step 30: 3 (1 to 6)" in tips
  assert len([path for path in chart.iter("path") if path.get("fill-opacity")]) == 2  # training and validation
  alone = next(section(parsed(make_run(), make_run("other", d_ff=64)), "Loss and perplexity").iter("svg"))
  assert not [path for path in alone.iter("path") if path.get("fill-opacity")]


def test_a_run_shows_its_speed_and_the_wall_time_of_all_its_starts():
  run = make_run()
  for record in run.records:  # stopped after step 20, and resumed
    record |= {"seconds": 2.0 * record["step"] - (40 if record["step"] > 20 else 0)}
    record |= {"tokens_per_second": 500.0, "input_wait": 0.25} if record["kind"] == "train" else {}
  run = dataclasses.replace(run, records=sorted(run.records, key=lambda record: record["step"]))
  facts = {text_of(row[0]): text_of(row[1]) for row in section(parsed(run), "Runs").find(".//tbody")}
  assert facts["speed"] == "500 tokens per second, 25.0% of the time waiting for input"
  assert facts["wall time"] == "0:01:00"


def test_three_runs_side_by_side_fit_a_window_of_1280_pixels():
  root = parsed(*(make_run(name) for name in ("first", "second", "third")))
  style = root.find("head/style").text
  padding, gap, scrollbar = 24, 18, 17
  assert re.search(rf"main {{ padding: 0 {padding}px", style) and re.search(rf"\.columns {{ .*gap: 14px {gap}px", style)
  grids = [part.get("style") for part in root.iter("div") if part.get("class") == "columns"]
  assert grids
  for grid in grids:
    columns, least = map(
      int, re.fullmatch(r"grid-template-columns: repeat\((\d+), minmax\((\d+)px, 1fr\)\)", grid).groups()
    )
    assert columns == 3 and columns * least + (columns - 1) * gap + 2 * padding + scrollbar <= 1280
  # What is wider than its column shrinks with it, and no table is wider than what scrolls around it.
  for rule in (r"svg { [^}]*max-width: 100%", r"figure { [^}]*max-width: 100%", r"\.panel { [^}]*max-width: 100%"):
    assert re.search(rule, style)
  parents = {child: parent for parent in root.iter() for child in parent}
  assert all(parents[table].get("class") == "scroll" for table in root.iter("table"))
