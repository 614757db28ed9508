"""The page of a store: what it shows is what the store holds, and nothing of it is loaded from anywhere."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teachonce.cli.main import main
from teachonce.extraction.config import ExtractConfig
from teachonce.extraction.extract import extract
from teachonce.inspection import page as inspect_page
from teachonce.inspection.page import write_page
from teachonce.pixels.apply_view import apply_view
from teachonce.pixels.decode import decode_image
from teachonce.pixels.preprocessing import Preprocessing
from teachonce.records.class_table import ClassTable, write_classes
from teachonce.records.discovery import open_records
from teachonce.store.begin import begin_store
from teachonce.store.store import Store
from tests.support.chromium import measure_page
from tests.support.raw_images import write
from tests.support.small_data import encode_jpeg, write_shards, write_store
from tests.support.small_models import COLORS, color_example, write_color_shards, write_color_teacher

SECTIONS = ["decide", "suspects", "sheet", "views", "sure", "shards", "bytes", "codec", "facts"]
VOID_TAGS = {"meta", "img", "br"}
MIX = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}


class Element:
    """A tag with its attributes, its children and the text inside it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        whole = "".join(child if isinstance(child, str) else child.text for child in self.children)
        return re.sub(r"\s+", " ", whole).strip()

    def all(self) -> list[Element]:
        inner = [child for child in self.children if isinstance(child, Element)]
        return [self, *(element for child in inner for element in child.all())]

    def find(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            element
            for element in self.all()
            if element.tag == tag and all(element.attributes.get(name) == value for name, value in wanted.items())
        ]


class PageReader(HTMLParser):
    """Builds the tree; a tag that is closed in another order than it was opened fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open = [Element("page", {})]
        self.feed(page)
        self.close()
        assert len(self.open) == 1, f"never closed: {[element.tag for element in self.open[1:]]}"
        self.root = self.open[0]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID_TAGS:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag, f"{tag} closed where another one was open"

    def handle_data(self, data):
        self.open[-1].children.append(data)


def read_page(path: Path) -> Element:
    return PageReader(path.read_text()).root


def section(page: Element, name: str) -> Element:
    (found,) = page.find("section", id=name)
    return found


def make_store(folder: Path, data: Path, name: str, **options) -> Store:
    teacher = write_color_teacher(folder / f"{name}.onnx")
    extract(ExtractConfig(data=data, teacher=teacher, out=folder / name, device="cpu", batch_size=8, **options))
    return Store(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def data(folder):
    return write_color_shards(folder / "data")


@pytest.fixture(scope="module")
def crops(folder, data):
    options = {"views": 3, "erase_prob": 0.3, "crop_scale": (0.5, 1.0)}
    return make_store(folder, data, "crops", policy="crop+randaugment", codec="topk", topk=2, **options)


@pytest.fixture(scope="module")
def center(folder, data):
    return make_store(folder, data, "center", codec="float32")


@pytest.fixture(scope="module")
def mixed(folder, data):
    return make_store(folder, data, "mixed", policy="crop", views=2, codec="float32", mix_prob=0.5, **MIX)


def shown_pixels(card: Element) -> np.ndarray:
    (image,) = card.find("img")
    kind, _, encoded = (image.attributes["src"] or "").partition(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def position_of(card: Element, store: Store) -> tuple[int, int, int]:
    """(shard, row, view) that a card of the sheet says it is of."""
    found = re.search(r"(\S+-of-\d{5}) row (\d+)", card.text)
    assert found is not None
    view = re.search(r"view (\d+)", card.text)
    return [name for name, _ in store.shards].index(found[1]), int(found[2]), int(view[1]) if view else 0


# Pages that tests read, and none changes.
@pytest.fixture(scope="module")
def crops_file(folder, data, crops):
    return write_page(crops.path, data, folder / "crops.html")


@pytest.fixture(scope="module")
def crops_page(crops_file):
    return read_page(crops_file)


@pytest.fixture(scope="module")
def crops_page_without_records(folder, crops):
    return read_page(write_page(crops.path, None, folder / "crops-alone.html"))


@pytest.fixture(scope="module")
def center_page(folder, data, center):
    return read_page(write_page(center.path, data, folder / "center.html"))


def test_the_page_has_every_section_and_needs_nothing_beside_it(crops, crops_page):
    page = crops_page
    assert [element.attributes["id"] for element in page.find("section")] == SECTIONS
    assert [link.attributes["href"] for link in page.find("nav")[0].find("a")] == [f"#{name}" for name in SECTIONS[1:]]
    for element in page.all():
        assert element.tag not in ("script", "link", "iframe", "object")
        for name, value in element.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert re.match(r"#|data:image/(png|jpeg);base64,", value or ""), (element.tag, name, value)
            assert not name.startswith("on")
            assert "url(" not in (value or "") or "url(#" in (value or "")
    (style,) = page.find("style")
    assert "url(" not in style.text and "@import" not in style.text and "prefers-color-scheme: dark" in style.text
    images = page.find("img")
    # 24 of the sheet, a record with its three views, and the suspects.
    assert len(images) == 24 + 4 + len(section(page, "suspects").find("article"))
    assert all(image.attributes["alt"] and image.attributes["width"] for image in images)
    charts = section(page, "sure").find("svg")
    assert len(charts) == 4 and all(chart.attributes["aria-label"] for chart in charts)
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for text in ("topk (k 2, num_classes 4)", "crop+randaugment", crops.fingerprint, "2 of 2 files", "6 of 6 files"):
        assert (text in section(page, "facts").text) == (text != "2 of 2 files")
    for name in ("indices", "codes", "box", "magnitudes", "erasing_fills"):
        assert name in section(page, "bytes").text


def test_a_card_says_what_the_store_says(data, crops, crops_page):
    page = crops_page
    source = open_records(data, "train")
    size_px = Preprocessing.from_json(crops.plan.teacher["preprocessing"]).size_px
    cards = section(page, "sheet").find("article")
    positions = [position_of(card, crops) for card in cards]
    assert len(set(positions)) == 24 and {view for _, _, view in positions} == {0, 1, 2}
    num_agreed = 0
    for card, (shard, row, number) in zip(cards, positions, strict=True):
        logits = crops.read_logits(shard, number, [row])[0].astype(np.float64)
        probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        label = int(crops.read_labels(shard)[row])
        record = source.read_record(shard, row)
        view = crops.read_views(shard, number, [row])[0]
        # The codec keeps two classes: which of the others is likelier is not known, so the label is added below.
        top = [(f"class{at}", f"{probs[at]:.3f}") for at in np.argsort(-probs)[:2]]
        lines = [[part.text for part in line.find("span")] for line in card.find("li")]
        assert [tuple(line) for line in lines[:2] if float(line[1]) >= 0.001] == [
            t for t in top if float(t[1]) >= 0.001
        ]
        assert len(lines) == 2 + (f"class{label - 1}" not in dict(top))
        is_right = top[0][0] == f"class{label - 1}"
        num_agreed += is_right
        assert card.text.startswith(("✓ " if is_right else "✗ ") + f"class{label - 1}")
        assert record.filename in card.text and ("flipped" in card.text) == view.flip
        assert ("erased" in card.text) == bool(view.erasings)
        np.testing.assert_array_equal(shown_pixels(card), apply_view(decode_image(record.encoded), view, size_px))
    assert f"In {num_agreed} of 24 the teacher's choice is the label" in section(page, "sheet").text


def test_what_was_done_is_said_where_something_was(crops_page, center_page):
    assert "crop " in crops_page.text
    assert "view 0" not in center_page.text


def test_policy_center_is_shown_through_the_teachers_preprocessing(data, center, center_page):
    page = center_page
    assert [element.attributes["id"] for element in page.find("section")] == [s for s in SECTIONS if s != "views"]
    source = open_records(data, "train")
    preprocessing = Preprocessing.from_json(center.plan.teacher["preprocessing"])
    for card in section(page, "sheet").find("article"):
        shard, row, _ = position_of(card, center)
        pixels = preprocessing.apply(decode_image(source.read_record(shard, row).encoded))
        np.testing.assert_array_equal(shown_pixels(card), pixels)
    assert "In 24 of 24 the teacher's choice is the label." in section(page, "sheet").text
    assert "None of 33 records is one for which the teacher gives a class that is at least 10 times" in (
        section(page, "suspects").text
    )
    assert "Nothing stands out: no label is contradicted and no shard differs" in section(page, "decide").text
    assert "the shorter side at 16 px (bilinear), then the central 16 px" in section(page, "sheet").text


def test_mixed_views_have_two_labels_and_their_shares(tmp_path, data, mixed):
    page = read_page(write_page(mixed.path, data, tmp_path / "page.html"))
    source = open_records(data, "train")
    num_mixed = num_views = 0
    for card in section(page, "sheet").find("article"):
        shard, row, number = position_of(card, mixed)
        num_views += 1
        mix = mixed.read_views(shard, number, [row])[0].mix
        if mix is None:
            assert "with" not in card.text
            continue
        num_mixed += 1
        ((_, partner),) = mixed.locations_of(mix.partner)
        own, other = (int(mixed.read_labels(shard)[at]) for at in (row, partner))
        assert re.search(rf"(mixup|cutmix) with [<>]?\d+% class{other - 1};?", card.text), card.text
        if own != other:
            shares = re.match(rf"[✓✗] [<>]?(\d+)% class{own - 1} \+ [<>]?(\d+)% class{other - 1} ", card.text)
            assert shares is not None, card.text
            assert abs(int(shares[1]) - 100 * mix.share) <= 1 and abs(int(shares[1]) + int(shares[2]) - 100) <= 1
        views = [mixed.read_views(shard, number, [at])[0] for at in (row, partner)]
        images = [decode_image(source.read_record(shard, at).encoded) for at in (row, partner)]
        partner_pixels = apply_view(images[1], views[1].without_mix(), 16)
        np.testing.assert_array_equal(
            shown_pixels(card), apply_view(images[0], views[0], 16, "bilinear", partner_pixels)
        )
    assert 0 < num_mixed < num_views
    assert re.search(r"\d+ of 66 views are mixed with another record", page.text)


def test_where_all_views_are_mixed_nothing_is_said_of_labels(tmp_path, data):
    store = make_store(tmp_path, data, "store", policy="crop", views=2, mix_prob=1.0, mixup_alpha=1.0)
    page = read_page(write_page(store.path, data))
    assert "a mixed view has no single label, so no label is contradicted" in section(page, "suspects").text
    assert len(section(page, "sure").find("svg")) == 2
    (numbers,) = page.find("div", class_="numbers")
    assert "-top-1" in numbers.text and "-ECE" in numbers.text


@pytest.mark.parametrize("options", [{}, {"policy": "crop", "views": 3, "mix_prob": 0.3, "mixup_alpha": 1.0}])
def test_a_planted_mislabel_comes_first(tmp_path, options):
    labels = [1 + index % len(COLORS) for index in range(33)]
    colors = [COLORS[index % len(COLORS)] for index in range(33)]
    # Record 22 is as blue as any and labeled as red; record 9 is between yellow and red, and labeled as red.
    labels[22], colors[22] = 1, COLORS[2]
    labels[9], colors[9] = 1, 0.9 * COLORS[3] + 0.1 * COLORS[0]
    payloads = [color_example(index, labels[index], colors[index]) for index in range(33)]
    data = write_shards(tmp_path / "data", sizes=(20, 13), num_classes=5, payloads=payloads)
    store = make_store(tmp_path, data, "store", codec="float32", **options)
    page = read_page(write_page(store.path, data))
    suspects = section(page, "suspects").find("article")
    assert len(suspects) == 2
    assert "2 of 33 labels (6.1%) the teacher contradicts" in section(page, "decide").text
    assert "For 2 of 33 records the teacher gives a class that is at least 10 times as likely" in page.text
    for card, (filename, place, choice) in zip(
        suspects,
        [
            ("image_22.jpg", "train-00001-of-00002 row 2", "class2"),
            ("image_9.jpg", "train-00000-of-00002 row 9", "class3"),
        ],
        strict=True,
    ):
        assert filename in card.text and place in card.text and "labeled class0" in card.text
        assert [line.find("span")[0].text for line in card.find("li")] == [choice, "class0"]
        assert (card.find("img")[0].attributes["alt"] or "").startswith(filename)
    first, second = (float(re.search(r"([\d.]+) nats apart", card.text)[1]) for card in suspects)
    assert first > second > 0


def test_labels_that_are_a_little_less_likely_need_no_decision(tmp_path):
    """Below the stated ratio, with and without a record above it; the list is of those above alone."""
    data = write_shards(tmp_path / "data", sizes=(6,))
    labels = [record.label for record in open_records(data, "train").iter_shard(0)]
    logits = np.zeros((6, 3), np.float32)
    logits[np.arange(6), np.array(labels) - 1] = 3
    logits[1, labels[1] % 3] = 3 + np.log(9.9)
    page = read_page(write_page(write_store(tmp_path / "a", data, logits).path))
    assert not section(page, "suspects").find("article") and "None of 6 records" in section(page, "suspects").text
    logits[4, labels[4] % 3] = 3 + np.log(10.1)
    page = read_page(write_page(write_store(tmp_path / "b", data, logits).path))
    (card,) = section(page, "suspects").find("article")
    assert "image_4.jpg" in card.text and "1 of 6 labels (16.7%)" in section(page, "decide").text


def test_without_the_records_there_is_all_but_pictures(crops, mixed, crops_page_without_records):
    page = crops_page_without_records
    assert [element.attributes["id"] for element in page.find("section")] == SECTIONS
    assert not page.find("img") and "this page has no pictures. With them" in page.text
    assert f"teachonce inspect {crops.path} --html --data RECORDS" in page.text
    card = section(page, "sheet").find("article")[0]
    shard, row, _ = position_of(card, crops)
    assert f"class{crops.read_labels(shard)[row] - 1}" in card.text and crops.read_filenames(shard)[row] in card.text
    # A mix's partner is found in the store alone.
    assert re.search(r"(mixup|cutmix) with [<>]?\d+% class[0-3]", read_page(write_page(mixed.path)).text)


def test_what_the_data_says_is_text_and_never_html(tmp_path):
    wild = "<script>alert('x')</script>"
    payload = color_example(0, 2, COLORS[0])
    data = write_shards(tmp_path / "data", sizes=(1, 1), payloads=[payload, payload], num_classes=None)
    write_classes(data, ClassTable(("background", "a", wild, 'b"c'), ("", 'on"e', wild, "&lt;"), has_background=True))
    store = write_store(tmp_path / "<i>store", data, np.array([[9, 0, 0], [0, 0, 9.0]], np.float32))
    text = write_page(store.path, data).read_text()
    page = PageReader(text).root
    assert wild not in text and not page.find("script") and not page.find("i")
    assert page.find("h1")[0].text == "<i>store"
    cards = section(page, "sheet").find("article")
    assert cards[0].text.startswith(f"✗ {wild}")
    assert 'on"e' in cards[0].text and "&lt;" in cards[1].text
    assert f"labeled {wild}" in section(page, "suspects").text


def test_records_without_labels_are_neither_right_nor_wrong(tmp_path):
    for number in range(6):
        write(tmp_path / "data" / f"{number}.jpg", encode_jpeg(number))
    page = read_page(write_page(write_store(tmp_path / "store", tmp_path / "data", offset=-1).path, tmp_path / "data"))
    assert "6 of 6 views are of records without a label" in " ".join(page.text.split())
    sheet = section(page, "sheet")
    assert (
        not [mark for mark in sheet.find("span") if "mark" in (mark.attributes.get("class") or "")]
        and "the teacher's choice is the label" not in sheet.text
    )
    assert "no label" in sheet.text and len(section(page, "sure").find("svg")) == 2
    assert "label -1" not in page.find("article")[0].find("p", class_="names")[0].text


def test_logits_without_a_teacher_show_the_whole_image(tmp_path):
    data = write_shards(tmp_path / "data")
    page = read_page(write_page(write_store(tmp_path / "store", data).path, data))
    assert "its preprocessing is unknown; the full images are shown" in section(page, "sheet").text
    assert shown_pixels(section(page, "sheet").find("article")[0]).shape == (30, 40, 3)
    assert "the store has no samples of logits from before encoding" in section(page, "codec").text


def test_a_store_whose_later_views_are_missing_is_shown_as_far_as_it_goes(tmp_path, data):
    store = make_store(tmp_path, data, "store", policy="crop", views=2, views_per_file=2)
    begin_store(store.path, replace(store.plan, view_groups=((0, 1), (2, 4))), views_per_file=3)
    page = read_page(write_page(store.path, data))
    assert "Usable for 2 of 5 views: the others are planned, not begun here" in page.text
    assert "to resume" not in page.text
    assert {position_of(card, store)[2] for card in section(page, "sheet").find("article")} == {0, 1}
    assert "2 of 5 planned" in section(page, "facts").text
    name = store.shards[0][0]
    (store.path / f"{name}.v002-004.arrow").write_bytes(b"begun")
    text = read_page(write_page(store.path, data, overwrite=True)).text
    assert "7 of 10 files" in text and "run the same extract command to resume" in text
    assert "Usable" not in read_page(write_page(make_store(tmp_path, data, "whole").path)).text


def test_a_shard_that_stands_out_is_named(tmp_path):
    data = write_shards(tmp_path / "data", sizes=(40, 40, 40), num_classes=9)
    logits = np.zeros((120, 8), np.float32)
    logits[np.arange(120), np.arange(120) % 8] = 5
    same = section(read_page(write_page(write_store(tmp_path / "same", data, logits).path)), "shards")
    assert "No shard stands out: top-1 from 100.00% to 100.00% in 3 shards" in same.text and not same.find("table")
    logits[40:80] = np.roll(logits[40:80], 1, axis=1)
    other = section(read_page(write_page(write_store(tmp_path / "other", data, logits).path)), "shards")
    assert [row.find("td")[0].text for row in other.find("tr")[1:]] == ["train-00001-of-00003"]
    assert "1 of 3 shards stand out" in other.text


def test_of_a_large_store_a_sample_is_measured_and_the_page_says_so(
    tmp_path, crops, crops_page_without_records, monkeypatch
):
    assert "sample, spread evenly" not in crops_page_without_records.text
    monkeypatch.setattr(inspect_page, "MAX_ROWS", 60)
    page = read_page(write_page(crops.path, None, tmp_path / "again.html"))
    assert "20 of 33 records in 3 of 3 views, 60 of 99 in total" in page.text
    assert "of 20 records" in section(page, "suspects").text, page.text
    assert "Of 60 views" in section(page, "sure").text


def test_the_same_store_gives_the_same_page(tmp_path, data, crops, crops_file):
    assert write_page(crops.path, data, tmp_path / "again.html").read_bytes() == crops_file.read_bytes()


def end(*words) -> int:
    with pytest.raises(SystemExit) as error:
        main(["inspect", *[str(word) for word in words]])
    return error.value.code


def test_the_command_writes_into_the_store_or_elsewhere(tmp_path, data, center, capsys):
    assert end(center.path, "--html", "--data", data) == 0
    assert str(center.path / "inspect.html") in capsys.readouterr().out
    assert len(read_page(center.path / "inspect.html").find("img")) == 24
    assert end(center.path, "--html", "--out", tmp_path / "deep" / "page.html") == 0
    assert not read_page(tmp_path / "deep" / "page.html").find("img")


def test_what_means_nothing_is_refused(tmp_path, data, center, capsys):
    for words, phrase in (
        ((data, "--html"), "--html: is for stores"),
        ((center.path, "--html", "--json"), "--html with --json: expected one of the two"),
        ((center.path, "--data", data), f"--data {data}: expected --html"),
        ((center.path, "--out", tmp_path / "x.html"), f"--out {tmp_path / 'x.html'}: expected --html"),
        ((center.path, "--html", "--out", tmp_path), "is a folder"),
        ((center.path, "--html", "--data", tmp_path / "nowhere"), "no such folder"),
    ):
        assert end(*words) == 2, words
        shown = capsys.readouterr().err
        assert phrase in shown and shown.count("\n") == 1, shown


def test_a_run_is_sent_to_its_report(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert end(tmp_path, "--html") == 2
    assert "a run, whose page is its report.html" in capsys.readouterr().err


def test_records_of_another_store_are_refused(tmp_path, center, capsys):
    other = write_color_shards(tmp_path / "other", first_index=100)
    assert end(center.path, "--html", "--data", other, "--out", tmp_path / "page.html") == 1
    assert "0 of 33 records are in the store; 33 are not (first: image_100.jpg)" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_a_file_that_exists_is_not_replaced_unasked(tmp_path, center, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("years of work")
    assert end(center.path, "--html", "--out", notes) == 2
    assert "notes.txt: exists; remove it, choose another --out, or give --overwrite" in capsys.readouterr().err
    assert notes.read_text() == "years of work"
    assert end(center.path, "--html", "--overwrite") == 2
    assert "--overwrite without --out: expected --out FILE" in capsys.readouterr().err
    assert end(center.path, "--html", "--out", notes, "--overwrite") == 0
    assert notes.read_text().startswith("<!doctype html>")
    for _ in range(2):  # the store's own page is made anew
        assert end(center.path, "--html") == 0


def test_classes_that_are_numbered_otherwise_keep_their_names(tmp_path, data, center, center_page):
    """The same images as a folder, whose labels count from 0 where those of the shards count from 1."""
    images = tmp_path / "images"
    source = open_records(data, "train")
    for record in (record for shard in range(len(source.shards)) for record in source.iter_shard(shard)):
        path = images / "train" / source.classes.names[record.label] / record.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record.encoded)
    expected = section(center_page, "sheet").find("article")
    found = section(read_page(write_page(center.path, images, tmp_path / "page.html")), "sheet").find("article")
    assert [card.text for card in found] == [card.text for card in expected] and "class2" in found[2].text


def test_the_records_may_lie_in_other_shards(tmp_path, center, center_page):
    """The same pictures, captions and numbers; of fewer records, those that are there."""
    other = write_color_shards(tmp_path / "other", sizes=(13, 20))
    page = read_page(write_page(center.path, other, tmp_path / "other.html"))
    cards = section(page, "sheet").find("article")
    assert [shown_pixels(card).tobytes() for card in cards] == [
        shown_pixels(card).tobytes() for card in section(center_page, "sheet").find("article")
    ]


def test_a_store_of_which_nothing_is_whole_has_no_page(tmp_path, center, capsys):
    begin_store(tmp_path / "empty", center.plan, views_per_file=1)
    assert end(tmp_path / "empty", "--html") == 1
    assert "is not finished: 0 of 6 files are there" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_asks_for_another_place(tmp_path, center, capsys):
    store = tmp_path / "store"
    store.mkdir()
    for file in center.path.iterdir():
        (store / file.name).write_bytes(file.read_bytes())
    (store / "inspect.html").unlink(missing_ok=True)
    store.chmod(0o555)
    try:
        if os.access(store, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert end(store, "--html") == 1
        assert "the store's folder is not writable; give a file" in capsys.readouterr().err
        assert end(store, "--html", "--out", tmp_path / "page.html") == 0
    finally:
        store.chmod(0o755)


def test_the_summary_says_the_same_as_the_page(crops, crops_page_without_records, capsys):
    assert end(crops.path, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    page = crops_page_without_records
    numbers = [cell.text for cell in page.find("div", class_="numbers")[0].find("b")]
    # No top-5 of four classes.
    assert numbers[:5] == ["33", "3", f"{summary['top1']:.2%}", f"{summary['ece']:.4f}",
                           f"{summary['entropy_nats']:.3f}"]  # fmt: skip
    rows = [[cell.text for cell in row.find("td")] for row in section(page, "codec").find("tr")[1:]]
    errors = summary["codec_error"]
    assert [row[0] for row in rows] == ["T = 1", "T = 2", "T = 4"] and rows[2][1] == f"{errors['4']['mean']:.4f}"
    assert rows[2][3] == f"{errors['4']['tail_mass']:.4f}"


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_a_phone(tmp_path, data, width, crops, mixed):
    """Nothing is wider than the window, and no text is smaller than 11 px."""
    for name, store in (("crops", crops), ("mixed", mixed)):
        page = write_page(store.path, data, tmp_path / f"{name}.html")
        measured = measure_page(page, width, tmp_path)
        assert measured["width"] <= width and not measured["small"], name
