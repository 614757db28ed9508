"""A plan: bytes of a real extraction, hours and break-even by hand, distortion and tails of known logits."""

import functools
import html
import json
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from teachonce.cli.main import main, parse_command
from teachonce.codecs.dense import Int8Codec
from teachonce.codecs.topk import TopKCodec
from teachonce.errors import ConfigError, LogitsError, RecordError
from teachonce.extraction.config import ExtractConfig, ExtractionOptions, PlanConfig
from teachonce.extraction.extract import extract
from teachonce.extraction.planning.costs import (
    TEMPERATURES,
    Timings,
    estimate_break_even,
    estimate_hours,
)
from teachonce.extraction.planning.estimate import _codec_entry, _try, build_estimate, estimate
from teachonce.extraction.planning.measure import run_teacher, try_codec
from teachonce.extraction.planning.page import render_plan
from teachonce.extraction.planning.picture import draw_estimate
from teachonce.extraction.planning.table import format_bytes, format_hours, render_estimate
from teachonce.extraction.prepare import build_plan
from teachonce.models.classifier import load_model
from teachonce.records.discovery import open_records
from teachonce.records.sample import SubsetSource, sample_labeled, sample_locations
from teachonce.store.store import Store
from teachonce.views.columns import VIEW_COLUMNS
from tests.support.chromium import measure_page
from tests.support.plan_costs import TIMINGS, WORKLOAD
from tests.support.small_data import write_shards
from tests.support.small_models import COLORS, write_color_shards, write_color_teacher

NUM_CLASSES = 30  # enough for topk 5, 10 and 20; the last 26 are colors of no image


FILES = ["extraction-plan.html", "extraction-plan.json", "extraction-plan.svg", "extraction-plan.txt"]


MIXED = {"policy": "crop+randaugment", "erase_prob": 0.5, "mixup_alpha": 0.4, "cutmix_alpha": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planned")


@pytest.fixture(scope="module")
def data(folder):
    return write_color_shards(folder / "data")  # 20 and 13 records


@pytest.fixture(scope="module")
def teacher(folder):
    return write_color_teacher(folder / "teacher.onnx", num_classes=NUM_CLASSES)


@pytest.fixture(scope="module")
def config(data, teacher):
    return PlanConfig(data=data, teacher=teacher, offset=1, device="cpu", batch_size=8, views=3, decode_threads=2)


@pytest.fixture(scope="module")
def estimated(config):
    return build_estimate(config)


@pytest.fixture
def summary(estimated):
    """A copy, which a test may change."""
    return deepcopy(estimated)


def entry_of(summary, label: str) -> dict:
    return next(entry for entry in summary["codecs"] if entry["label"] == label)


@pytest.fixture(scope="module")
def estimate_once():
    """``build_estimate``, once for each configuration."""
    return functools.cache(lambda config: build_estimate(config))


OPTIONS = [{"policy": "center"}, {"policy": "crop", "views": 3}, MIXED | {"views": 3}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("codec, k", [("float32", 0), ("float16", 0), ("int8", 0), ("topk", 5), ("topk", 7)])
def test_bytes_are_those_of_an_extraction(tmp_path, data, teacher, estimate_once, options, codec, k):
    """A plan shows every codec: that of random views is made with one of them, that of policy center with each."""
    config = PlanConfig(
        data=data,
        teacher=teacher,
        offset=1,
        device="cpu",
        batch_size=8,
        codec=codec,
        topk=k or 10,
        **(options if options["policy"] == "center" else {"views_per_file": 2, **options}),
    )
    is_center = options["policy"] == "center"
    shown = estimate_once(config if is_center else replace(config, codec="topk", topk=7))["codecs"]
    label = f"{codec} {k}" if k else codec
    (planned,) = (entry for entry in shown if entry["label"] == label)
    assert [entry["label"] for entry in shown if entry["is_planned"]] == [label if is_center else "topk 7"]
    extract(replace(config.to_extraction(), out=tmp_path / "store", gate_samples=0))
    store = Store(tmp_path / "store")
    assert store.num_views == (1 if options["policy"] == "center" else 3)
    for shard, (_, num_records) in enumerate(store.shards):
        for view in range(store.num_views):
            columns = store.read_columns(shard, view)
            sizes = {name: values.nbytes / num_records for name, values in columns.items()}
            assert planned["view_bytes"] == sum(size for name, size in sizes.items() if name in VIEW_COLUMNS)
            assert planned["codec_bytes"] == sum(size for name, size in sizes.items() if name not in VIEW_COLUMNS)
    # Arrow pads each buffer to 8 bytes, and by how much depends on the rows of a shard: the trial has others. Buffers:
    # one a column and view, four of the records, five of the samples in each file of two views.
    num_buffers = len(store.shards) * (len(columns) * store.num_views + 4 + 5 * len(store.plan.view_groups))
    assert abs(planned["store_bytes"] - store.num_bytes()) < 8 * num_buffers
    assert planned["bytes_per_view"] == planned["store_bytes"] / (store.num_records * store.num_views)


def test_the_sampled_views_are_the_extractions_own(tmp_path, config):
    extract(replace(config.to_extraction(), out=tmp_path / "store", codec="float32", gate_samples=0))
    store, source, teacher = Store(tmp_path / "store"), open_records(config.data, "train"), load_model(config.teacher)
    locations = sample_locations(source, 12, seed=5)
    subset = SubsetSource(source, locations)
    subset_plan = build_plan(config.to_extraction(), subset, teacher)
    result = run_teacher(subset, subset_plan, teacher, batch_size=5, num_threads=2, advance=lambda count: None)
    assert len({shard for shard, _ in locations}) == 2 and len(result.views) == 12
    for index, (shard, row) in enumerate(locations):
        assert result.keys[index] == store.read_keys(shard)[row]
        assert result.views[index] == store.read_views(shard, index % 3, [row])[0]
        # Other batches sum in another order: float32 to 2^-20 of logits up to 10.
        np.testing.assert_allclose(result.logits[index], store.read_logits(shard, index % 3, [row])[0], atol=1e-5)


def test_a_mixed_view_takes_its_partner_from_the_sample_and_pays_for_it(data, teacher):
    config = PlanConfig(data=data, teacher=teacher, offset=1, device="cpu", **MIXED)
    source, model = open_records(data, "train"), load_model(teacher)
    subset = SubsetSource(source, sample_locations(source, 12, seed=0))
    reads = []

    class Counting(SubsetSource):
        def read_batch(self, locations, **options):
            reads.extend(row for _, row in locations)
            return super().read_batch(locations, **options)

    subset = Counting(source, subset.locations)
    subset_plan = build_plan(config.to_extraction(), subset, model)
    result = run_teacher(subset, subset_plan, model, batch_size=8, num_threads=2, advance=lambda count: None)
    num_mixed = sum(view.mix is not None for view in result.views)
    assert num_mixed > 6 and {view.mix.partner for view in result.views if view.mix} <= set(result.keys.tolist())
    # The keys once, the warm-up's record, then each record; a partner twice: two renderings of a record are timed.
    assert len(reads) == 12 + 1 + 2 * (result.views[0].mix is not None) + 12 + 2 * num_mixed


def test_sample_locations_are_those_of_the_gates_records(data):
    source = open_records(data, "train")
    records, _ = sample_labeled(source, 10, seed=3)
    keys = [source.read_record(*location).key for location in sample_locations(source, 10, seed=3)]
    assert keys == [record.key for record in records]
    assert sample_locations(source, 10, seed=4) != sample_locations(source, 10, seed=3)
    assert sample_locations(source, 99, seed=3) == [(0, row) for row in range(20)] + [(1, row) for row in range(13)]


def test_what_several_devices_take_in_words_and_in_the_picture(config, summary):
    assert summary["hours"]["cost"] is None and "network" not in summary["hours"]["lanes"]
    text = render_estimate(summary)
    assert "(--price)" not in text and "--network-gbps" in text
    known = build_estimate(replace(config, devices=2, price=3.0, network_gbps=1e-6))
    # A kilobit a second: 33 records of some hundred bytes each way.
    hours, traffic = known["hours"], known["traffic"]
    assert hours["bottleneck"] == "network" and hours["devices_used"] == 2
    moved = traffic["read_bytes"] + traffic["written_bytes"]
    assert hours["hours_here"] == pytest.approx(moved * 8 / 1e3 / 3600)
    assert hours["cost"] == pytest.approx(3 * hours["hours_here"])
    assert traffic["device_gbps"] == pytest.approx(1e-6)
    text, picture = render_estimate(known), draw_estimate(known)
    assert "on 2 devices (--devices), each with its own cores and link" in text
    assert f"{hours['cost']:,.2f} at 3 per device (--price)" in text and "limit     network, 100% of the time" in text
    assert (
        f"{traffic['num_gets']} GET" in text and f"{traffic['num_puts']} PUT for {traffic['num_files']} files" in text
    )
    assert "Bottleneck" in picture and "network" in picture and f"device hours: {hours['cost']:,.2f}" in picture


def test_a_busy_machine_is_said_in_words_and_in_the_picture(summary):
    quiet = summary["measurement"] | {"busy": [], "other_cores": 0.0, "steal": 0.0, "batch_spread": 0.02}
    idle = summary | {"measurement": quiet}
    text, picture = render_estimate(idle), draw_estimate(idle)
    assert "measured  in" in text and "differed by 2% of their median; others used 0.0 of" in text
    assert "BUSY" not in text and "busy machine" not in picture
    busy = summary | {"measurement": quiet | {"busy": ["steal was high"]}}
    text, picture = render_estimate(busy), draw_estimate(busy)
    assert (
        "BUSY      the machine was busy, so these figures are too slow" in text and "            steal was high" in text
    )
    assert "measured on a busy machine" in picture


def test_distortion_by_codec(summary):
    labels = [entry["label"] for entry in summary["codecs"]]
    assert labels == ["float32", "float16", "int8", "topk 5", "topk 10", "topk 20"]
    for t in map(str, TEMPERATURES):
        assert entry_of(summary, "float32")["total_variation"][t] == {"mean": 0, "worst": 0}
        for label in ("float16", "int8"):
            assert 0 < entry_of(summary, label)["total_variation"][t]["worst"] <= 0.01  # as they promise
    # 26 classes share one logit, -9, so the tail of topk 5 is 25 equal ones: nothing is lost but rounding.
    variation = entry_of(summary, "topk 5")["total_variation"]["2"]
    assert 0 < variation["mean"] <= variation["worst"] < 0.02


@pytest.mark.parametrize("codec", [Int8Codec(), TopKCodec(k=3, num_classes=NUM_CLASSES)])
def test_distortion_is_between_the_softened_distributions(tmp_path, config, codec):
    source, teacher = open_records(config.data, "train"), load_model(config.teacher)
    subset = SubsetSource(source, sample_locations(source, 33, seed=0))
    subset_plan = build_plan(config.to_extraction(), subset, teacher)
    result = run_teacher(subset, subset_plan, teacher, batch_size=8, num_threads=1, advance=lambda count: None)
    trial = try_codec(tmp_path, subset_plan, codec, result)
    for t in TEMPERATURES:
        decoded = codec.decode_logits(codec.encode_logits(result.logits), t)
        expected = []
        for dense, stored in zip(result.logits.astype(float) / t, decoded.astype(float) / t, strict=True):
            dense_probs, stored_probs = np.exp(dense) / np.exp(dense).sum(), np.exp(stored) / np.exp(stored).sum()
            expected.append(np.maximum(dense_probs - stored_probs, 0).sum())
        assert max(expected) > 0
        assert trial.total_variation[str(t)] == pytest.approx({"mean": np.mean(expected), "worst": max(expected)})


def test_a_codec_that_refuses_the_sample_is_shown_and_does_not_stop_the_plan(tmp_path, config, summary):
    source, teacher = open_records(config.data, "train"), load_model(config.teacher)
    subset = SubsetSource(source, sample_locations(source, 6, seed=0))
    subset_plan = build_plan(config.to_extraction(), subset, teacher)
    result = run_teacher(subset, subset_plan, teacher, batch_size=8, num_threads=1, advance=lambda count: None)
    wrong = TopKCodec(k=3, num_classes=NUM_CLASSES + 1)
    trial = _try(tmp_path, subset_plan, wrong, result)
    assert trial == "teacher logits of 30 classes, expected 31 as planned"
    entry = _codec_entry(wrong, trial, subset_plan, {}, is_planned=True)
    others = [other | {"is_planned": False} for other in summary["codecs"]]
    text = render_estimate(summary | {"codecs": [*others, entry]})
    assert "topk 3 <     rejects the sample: teacher logits of 30" in text
    assert "topk 3, which was requested, would make the extraction fail" in text


def test_a_plan_says_for_which_temperatures_a_codec_is(summary):
    found = {entry["name"]: entry["promised_temperatures"] for entry in summary["codecs"]}
    assert found == {"float32": None, "float16": None, "int8": [1.0, 4.0], "topk": [1, 8]}
    planned = next(entry for entry in summary["codecs"] if entry["is_planned"])
    said = f"{planned['label']} is bounded only for T = "
    assert (said in render_estimate(summary)) == (planned["promised_temperatures"] is not None)


def test_what_a_plan_says(config, summary):
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["kind"] == "plan" and summary["num_classes"] == NUM_CLASSES and summary["offset"] == 1
    assert summary["workload"] == {
        "num_records": 33,
        "num_views": 3,
        "num_groups": 1,
        "num_shards": 2,
        "epochs": 100,
        "students": 1,
        "num_devices": 8,
    }
    assert summary["sample"] == {"num_records": 33, "asked_for": 256, "seed": 0, "top1": summary["sample"]["top1"]}
    assert summary["sample"]["top1"] > 0.9  # each image has one color, whatever is cropped
    assert summary["break_even"]["offline_forwards"] == 99 and summary["break_even"]["online_forwards"] == 3300
    assert summary["unit_logits_bytes"] == 20 * 3 * NUM_CLASSES * 4
    for name, seconds in summary["timings"].items():
        if name.endswith("_seconds"):
            assert seconds > 0, name
    for entry in summary["codecs"]:
        assert entry["read_back_seconds"] > 0 and entry["write_seconds"] > 0
    text = render_estimate(summary)
    assert "33 records x 3 views in 2 shards" in text and "all 33 records (of 256 requested)" in text
    assert (
        "on 2 of 8 devices like this one" in text
        and "(more than one per shard and file of views would be idle)" in text
    )
    assert "int8 <" in text and "recommendation: --codec" in text
    few = render_estimate(build_estimate(replace(config, samples=9, students=2)))
    assert "sample    9 records, one view per record, drawn by seed 0" in few and "for 2 students of 100 epochs" in few


def test_the_teacher_is_scored_on_views_without_a_mix(config):
    some = build_estimate(replace(config, mixup_alpha=1.0, mix_prob=0.5))
    assert some["sample"]["top1"] > 0.9 and "the teacher's top-1 on these views without a mix " in render_estimate(some)
    none = build_estimate(replace(config, mixup_alpha=1.0))
    assert none["sample"]["top1"] is None and "no unmixed views with labels to score the" in render_estimate(none)


def test_the_center_is_one_view(config, data):
    summary = build_estimate(replace(config, policy="center", views=None))
    assert summary["workload"]["num_views"] == 1 and summary["codecs"][0]["view_bytes"] == 0
    assert summary["break_even"]["offline_forwards"] == 33
    assert "for the view" not in render_estimate(summary)


def test_a_teacher_of_few_classes_has_no_tail_to_show(tmp_path, data):
    spec = write_color_teacher(tmp_path / "four.onnx")
    summary = build_estimate(PlanConfig(data=data, teacher=spec, device="cpu"))
    assert [entry["k"] for entry in summary["tail_mass"]] == [1, 2]
    assert [entry["label"] for entry in summary["codecs"]] == ["float32", "float16", "int8"]
    assert summary["sample"]["top1"] > 0.9 and summary["offset"] == 1 and len(COLORS) == summary["num_classes"]
    two_panels = draw_estimate(summary | {"tail_mass": []})
    assert "Probability outside" in draw_estimate(summary) and "Probability outside" not in two_panels
    assert "Probability outside" not in render_plan(summary | {"tail_mass": []}, "")
    assert "probability outside" not in render_estimate(summary | {"tail_mass": []})


def test_the_written_plan_is_the_printed_one(tmp_path, config, capsys):
    out = tmp_path / "plan"
    text = estimate(replace(config, out=out))
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert (out / "extraction-plan.txt").read_text() == text + "\n"
    summary = json.loads((out / "extraction-plan.json").read_text())
    assert render_estimate(summary) == text
    picture = (out / "extraction-plan.svg").read_text()
    assert ElementTree.fromstring(picture).tag.endswith("svg") and picture == draw_estimate(summary)
    for words in ("Distortion by codec", "Probability outside the k most likely", "offline", "online"):
        assert words in picture
    page = (out / "extraction-plan.html").read_text()
    assert page == render_plan(summary, text) and text.splitlines()[0] in html.unescape(page)
    assert page.count("<figure>") == 4 and "Recommendation: <code>--codec" in page
    is_never = summary["break_even"]["epochs"] is None  # measured: reading a row may cost more than so small a teacher
    online = "cheaper than an online teacher" if is_never else "epochs, and an online teacher costs more"
    assert page.count(" (planned)") == 1 and page.count(online) == 1
    # An earlier plan may be written over, and --json prints what is written.
    printed = json.loads(estimate(replace(config, out=out, json=True)))
    assert printed == json.loads((out / "extraction-plan.json").read_text()) and printed.keys() == summary.keys()
    assert "plan: done 33 of 33 images" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["extraction-plan.html", "extraction-plan.svg"])
def test_page_and_picture_fit_a_phone(tmp_path, config, width, name):
    """The picture is scaled to the window; the page has as many columns of panels as fit, and text stays legible."""
    estimate(replace(config, out=tmp_path / "plan", devices=8, price=2.5))
    measured = measure_page(tmp_path / "plan" / name, width, tmp_path)
    assert measured["width"] <= width
    assert not measured["small"] or name.endswith(".svg")


def test_what_is_written_is_named(tmp_path, config, capsys):
    words = [
        "plan",
        "--data",
        str(config.data),
        "--teacher",
        config.teacher,
        "--device",
        "cpu",
        "--samples",
        "8",
        "--offset",
        "1",
    ]
    out = tmp_path / "plan"
    paths = "".join(f"{out / name}\n" for name in FILES)
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            main([*words, "--samples", "8", "--out", str(out), *more])
        shown = capsys.readouterr()
        assert end.value.code == 0 and (shown.err if more else shown.out).endswith(paths)
    assert json.loads(shown.out)["data"] == str(config.data)


def test_the_break_even_in_words_and_in_the_picture(summary):
    def show(timings: Timings) -> tuple[str, str]:
        hours = estimate_hours(timings, WORKLOAD)
        known = summary | {
            "timings": asdict(timings),
            "workload": asdict(WORKLOAD),
            "hours": asdict(hours),
            "break_even": asdict(estimate_break_even(timings, WORKLOAD, hours.hours_here)),
        }
        return render_estimate(known), draw_estimate(known)

    text, picture = show(TIMINGS)  # 2.12 h for 0.18 h an epoch: 11.8 epochs
    assert "offline costs less from epoch 12 of one student on (11.8; by the number of forwards alone 10)" in text
    assert "for 2 students of 50 epochs offline saves 15 h 52 min: online takes 4.85 times as long" in text
    assert "break-even: epoch 11.8" in picture and "epochs, 2 students one after another" in picture
    text, picture = show(replace(TIMINGS, teacher_seconds=0.021))
    assert "would cost 13 min 48 s more" in text
    text, picture = show(replace(TIMINGS, read_back_seconds=0.3))
    assert "never: reading a stored row takes longer" in text and "break-even" not in picture
    text, _ = show(replace(TIMINGS, has_accelerator=True, teacher_seconds=0.012))
    assert "if they share this machine's cores" in text and "concurrent stages: teacher" in text


def test_the_command(config, tmp_path, capsys):
    words = ["plan", "--data", str(config.data), "--teacher", config.teacher, "--offset", "1", "--device", "cpu"]
    parsed = parse_command([*words, "--views", "4", "--mixup-alpha", "0.2", "--devices", "2"])
    assert isinstance(parsed, PlanConfig) and (parsed.views, parsed.mixup_alpha, parsed.devices) == (4, 0.2, 2)
    # The name that it had before is read as well.
    assert parse_command([*words, "--num-devices", "3"]).devices == 3
    with pytest.raises(SystemExit) as end:
        main([*words, "--samples", "5", "--json"])
    assert end.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["sample"]["num_records"] == 5 and printed["workload"]["num_views"] == 10
    assert printed["policy"]["name"] == "crop" and not list(tmp_path.glob("**/extraction-plan.json"))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "--epochs 0: expected at least 1"),
        ({"students": 0}, "--students 0: expected at least 1"),
        ({"devices": 0}, "--devices 0: expected at least 1"),
        ({"price": -1.0}, "--price -1.0: expected 0 or more"),
        ({"network_gbps": 0.0}, "--network-gbps 0.0: expected more than 0"),
        ({"samples": 0}, "--samples 0: expected at least 1"),
        ({"views": 0}, "--views 0: expected at least 1"),
        ({"views_per_file": 0}, "--views-per-file 0: expected at least 1"),
        ({"policy": "center", "views": 2}, "--views 2: expected 1 with --policy center"),
        (
            {"policy": "center", "cutmix_alpha": 1.0},
            "--cutmix-alpha 1.0: applies only with a --policy that draws views",
        ),
        ({"crop_scale": (0.5, 0.1)}, "--crop-scale 0.5 0.1"),
        ({"num_classes": 1}, "--num-classes 1: expected at least 2"),
    ],
)
def test_settings_that_cannot_be_meant(options, message):
    with pytest.raises(ConfigError) as error:
        PlanConfig(data=Path("d"), teacher="t", **options)
    assert message in str(error.value)


def test_the_planned_extraction_has_the_same_settings():
    config = PlanConfig(
        data=Path("d"), teacher="t", codec="topk", topk=7, erase_prob=0.1, seed=4, precision="bf16", views=6
    )
    extraction = config.to_extraction()
    assert isinstance(extraction, ExtractConfig) and extraction.views == 6
    for field in ExtractionOptions.__dataclass_fields__:
        assert getattr(extraction, field) == getattr(config, field), field
    assert PlanConfig(data=Path("d"), teacher="t").to_extraction().views == 10
    assert PlanConfig(data=Path("d"), teacher="t", policy="center").to_extraction().views == 1
    # A store's views may be several, whatever --policy says beside it.
    assert ExtractConfig(data=Path("d"), teacher="t", out=Path("o"), views_of=Path("s"), views=3).views == 3


def test_a_store_is_not_written_over(tmp_path, config):
    out = tmp_path / "store"
    extract(replace(config.to_extraction(), out=out, gate_samples=0))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match=r"--out .*store: holds a store \(plan\.json\)"):
        estimate(replace(config, out=out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        estimate(replace(config, out=out / "plan.json"))


def test_what_an_extraction_would_refuse_is_refused_in_its_words(tmp_path, config, data):
    with pytest.raises(ConfigError, match="30 classes, the data 5"):
        build_estimate(replace(config, offset=None))
    spec = write_color_teacher(tmp_path / "nan.onnx", nan_above=0.7)
    with pytest.raises(LogitsError, match=r"train-00000-of-00002.* to .*: .*NaN or infinite logits"):
        build_estimate(replace(config, teacher=spec, offset=None))
    bare = write_shards(tmp_path / "bare", sizes=(3,), num_classes=None)  # labels 1, 2, 3
    spec = write_color_teacher(tmp_path / "four.onnx")
    with pytest.raises(RecordError, match=r"label 3, expected 0 to 2; .*--num-classes or --offset"):
        build_estimate(replace(config, data=bare, teacher=spec, offset=-1))
    with pytest.raises(ConfigError, match="no such folder"):
        build_estimate(replace(config, data=tmp_path / "nowhere"))


def test_quantities_for_people():
    assert [format_bytes(n) for n in (12, 999, 1000, 15_432, 123_456_789, 4.2e12)] == [
        "12 B", "999 B", "1.00 kB", "15.4 kB", "123 MB", "4.20 TB",
    ]  # fmt: skip
    assert [format_hours(hours) for hours in (0.001, 0.5, 99, 1234.4)] == [
        "3.6 s",
        "30 min 00 s",
        "99 h 00 min",
        "1,234 h",
    ]


def test_a_sample_has_the_boxes_that_crops_are_drawn_by(tmp_path, teacher):
    """So what is measured is what an extraction would render."""
    boxes = [[0.0, 0.0, 0.5, 0.5]]
    data = write_color_shards(tmp_path / "boxes", sizes=(9,), boxes=boxes)
    source = open_records(data, "train")
    subset = SubsetSource(source, [(0, 3), (0, 5)])
    assert subset.read_record(0, 1).boxes is None
    subset = SubsetSource(open_records(data, "train", with_boxes=True), subset.locations)
    np.testing.assert_array_equal(subset.read_record(0, 1).boxes, np.array(boxes, np.float32))
    options = {"policy": "crop+autoaugment", "object_covered": 0.9, "views": 2, "samples": 4, "batch_size": 4}
    summary = build_estimate(PlanConfig(data=data, teacher=teacher, offset=1, device="cpu", **options))
    assert summary["policy"]["objects"] == {"covered": 0.9, "boxes": "records", "max_attempts": 100}
