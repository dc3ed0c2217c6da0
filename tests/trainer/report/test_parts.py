"""The page's HTML: its sections and numbers, escaping, and the reasons for missing sections."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from pipeline import LoaderStats, RunError, UsageError
from trainer import write_report
from trainer.report.page import SECTIONS
from trainer.runs.metrics_file import add_metrics, read_metrics


class Page(HTMLParser):
    """Parsed HTML: start tags with their attributes, in order, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]


def open_page(file):
    html = file.read_text(encoding="utf-8")
    return html, Page(html)


def test_every_part_is_there_under_its_heading(made):
    assert made.left_out == {}
    html, page = open_page(made.file)
    headings = re.findall(r'<h2 id="([\w-]+)">([^<]+)</h2>', html)
    assert headings == [(name, heading) for name, (heading, _) in SECTIONS.items()]
    links = {a["href"].removeprefix("#") for a in page.all("a") if a["href"].startswith("#")}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert links <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_numbers_are_the_runs(made, tiny_run, tiny_dataset):
    _, page = open_page(made.file)
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val_top1"])
    assert f"{best['val_top1']:.2%}" in page.text
    assert "alexnet_bn, width 0.05" in page.text
    assert "90 train, 30 val" in page.text
    for value in tiny_dataset.statistics.eigenvalues:
        assert f"eigenvalue {value:,.1f}" in page.text
    for key, value in (("epochs", "2"), ("lr", "0.02"), ("mean", "image")):
        assert re.search(rf"\n{key}\s*{value}|{key}{value}", page.text)


def test_images_are_in_the_page_and_have_texts(made):
    _, page = open_page(made.file)
    images = page.all("img")
    assert len(images) > 50
    for image in images:
        assert image["alt"].strip()
        kind, _, data = image["src"].removeprefix("data:image/").partition(";base64,")
        content = base64.b64decode(data)
        if kind == "svg+xml":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            Image.open(io.BytesIO(content)).load()


def test_nothing_is_loaded_or_run(made):
    html, page = open_page(made.file)
    assert not page.all("script", "iframe", "object", "embed", "base", "form")
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith(("data:", "#"))
    assert "url(" not in html.partition("</style>")[0]


def test_the_same_run_gives_the_same_page(made, tiny_run, tmp_path):
    again = write_report(tiny_run, tmp_path / "again.html")
    assert again.file.read_bytes() == made.file.read_bytes()


def test_names_are_escaped(hostile_page, hostile_text):
    html, page = open_page(hostile_page)
    assert not page.all("script", "i>data", "b")
    assert "<script" not in html
    assert "<b>run" not in html
    assert f"{hostile_text} 0 日本語\\u202e\\x1b[2J" in page.text
    assert not set("\u202e\x1b") & set(html)
    assert any(hostile_text in image["alt"] for image in page.all("img"))
    assert "not the one it was trained on" in page.text


def test_a_missing_dataset_leaves_out_what_needs_it(tiny_run, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(tiny_run, folder)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"dataset": "/gone/<away>"}))
    done = write_report(folder, tmp_path / "r.html")
    assert list(done.left_out) == ["predictions", "neighbors", "confusion", "data"]
    html, page = open_page(done.file)
    assert "/gone/<away>, which is not there" in page.text
    headings = re.findall(r'<h2 id="([\w-]+)">', html)
    assert headings == ["summary", "curves", "throughput", "kernels", "recipe", "left-out"]


def test_missing_metrics_and_a_damaged_recipe_leave_out_their_sections(tiny_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    (folder / "metrics.jsonl").unlink()
    (folder / "recipe.toml").write_text("epochs = ")
    skip = ("predictions", "neighbors", "confusion", "data")
    done = write_report(folder, tmp_path / "r.html", skip=skip)
    assert list(done.left_out) == ["curves", "throughput", *skip, "recipe"]
    assert done.left_out["neighbors"] == "skipped (--skip)"
    assert "not valid TOML" in done.left_out["recipe"]
    _, page = open_page(done.file)
    assert "top-1 accuracy" not in page.text


def test_a_page_shows_validations_within_epochs_and_runs_without_any(tiny_run, tmp_path):
    skip = ("kernels", "predictions", "neighbors", "confusion", "data")
    epochs = read_metrics(tiny_run)
    within = replace(
        epochs[0], kind="validation", epochs_done=0.5, steps=1, val_top1=0.987, val_seconds=7200.0
    )
    unknown = dict.fromkeys(("val_loss", "val_top1", "val_top5"))
    loaders = [LoaderStats(10, 0.1, 0.1, 0.1, 0.1, 0.2, 3.0), LoaderStats(30, 0.1, 0.1, 0.1, 0.1, 0.6, 3.0)]
    epochs = [replace(row, loader=loader) for row, loader in zip(epochs, loaders, strict=True)]
    pages = {}
    for name, rows in (
        ("within", [within, *epochs]),
        ("first", [within]),
        ("without", [replace(row, **unknown, val_seconds=0.0, loader=None) for row in epochs]),
    ):
        folder = tmp_path / name
        shutil.copytree(tiny_run, folder)
        (folder / "metrics.jsonl").unlink()
        for row in rows:
            add_metrics(folder, row)
        done = write_report(folder, tmp_path / f"{name}.html", skip=skip)
        assert ("throughput" in done.left_out) == (name == "first")
        pages[name], _ = open_page(done.file)
    best = max(epochs, key=lambda row: row.val_top1)
    assert f"<dt>top-1 accuracy</dt><dd>{best.val_top1:.2%}</dd>" in pages["within"]
    assert "<dt>training time</dt><dd>2 h 0 min</dd>" in pages["within"]
    assert ">0.50</th>" in pages["within"]
    ready = "Batches ready when one was needed"
    assert f"<dt>{ready}</dt><dd>0.5 of 3</dd>" in pages["within"]
    assert ready not in pages["without"]
    assert "98.7%" in pages["within"]
    for name in ("first", "without"):
        assert "No epoch was validated" in pages[name]
        assert "top-1 accuracy" not in pages[name]
    assert "<td>–</td>" * 3 in pages["without"]


def test_a_report_that_cannot_be_made(tiny_run, tmp_path):
    out = tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    for arguments, error, text in (
        ((tmp_path / "empty", out), UsageError, "holds no checkpoint"),
        ((tiny_run / "best.pt", out), UsageError, "name the run's folder"),
        ((tiny_run, out, tmp_path / "empty"), UsageError, "not a prepared dataset"),
        ((tiny_run, tmp_path / "no" / "r.html"), RunError, "cannot write"),
    ):
        skip = ("neighbors", "confusion") if error is RunError else ()
        with pytest.raises(error, match=text):
            write_report(*arguments, skip=skip)
    with pytest.raises(UsageError, match="--skip is 'summary'"):
        write_report(tiny_run, out, skip=["summary"])
    assert not out.exists()
