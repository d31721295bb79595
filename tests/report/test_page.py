"""The page that the report stage writes, on tiny made-up projects."""

import json
import shutil
from html.parser import HTMLParser

from click.testing import CliRunner

from salmask.data import manifest
from salmask.encoders import on_disk as encoder_file
from salmask.report import samples
from stages.report import main as stage
from tests.helpers.tiny_report import CPU, EVIL, evaluated, make_project, run_stage

# -------------------------------------------------------------------------------------- the page


class Loads(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]


def test_the_page_needs_no_network(built) -> None:
    page = Loads()
    page.feed(built[1])
    assert "Encoders during training" not in built[1]
    assert len(page.sources) == 7  # curves, bars, saliency, masks, histograms, kernels, neighbours
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in built[1] and "@import" not in built[1] and "://" not in built[1]


def test_names_are_escaped(built) -> None:
    assert EVIL not in built[1]
    assert "&lt;script&gt;alert(1)" in built[1]


def test_the_page_says_what_was_run_and_shows_what_was_scored(built) -> None:
    _, html, output = built
    for words in ("12 train, 12 val", "of 2 classes", "1 file could not be read", "+30.00"):
        assert words in html
    assert "salmask lineage artifacts/evaluate/masked/knn/metrics.json" in html
    assert "come from the demo" not in html and 'class="first best"' in html
    assert "plain" in output and "+30.00" in output and "artifacts/report/index.html" in output


def test_equal_runs_write_equal_bytes_and_removed_runs_stay_out(built, monkeypatch) -> None:
    project, html, _ = built
    before = {p.name: p.read_bytes() for p in (project / "artifacts/report").iterdir()}
    evaluated(project, "removed", "knn", {"knn20_top1": 99.99})
    evaluated(project, "plain", "removed-protocol", {"knn20_top1": 99.98})
    again, output = run_stage(project, monkeypatch)
    assert again == html and "99.9" not in again + output
    after = {p.name: p.read_bytes() for p in (project / "artifacts/report").iterdir()}
    assert after == before and {"index.html", "results.json", "provenance.json"} <= set(after)


def test_measurements_and_collapsed_runs_are_shown(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    rows = "epoch,step,images,rankme,spread,train_images,knn_top1\n0,0,10,8,0.5,11,30\n"
    for name, rank in (("plain", 7), ("masked", 1)):
        folder = project / "artifacts/pretrain" / name
        (folder / "probe.csv").write_text(rows + f"2,60,10,{rank},0.5,11,40\n")
    html, _ = run_stage(project, monkeypatch)
    assert "Encoders during training" in html
    assert "on at most 10 images of <i>val</i>" in html and "at most 11 training images" in html
    assert "<b>masked</b>: the embeddings have collapsed to one direction" in html
    assert "<b>plain</b>: the" not in html


def test_images_without_labels_and_without_a_validation_split(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path, classes=(), splits=("train",))
    html, output = run_stage(project, monkeypatch)
    assert (
        "without labels" in html
        and "Nothing was evaluated" in html
        and "nothing was evaluated" in output
    )
    assert "Solid green frames" not in html and "Nearest neighbours" in html
    rows = manifest.load(project / "artifacts/data")
    encoder = encoder_file.load(project / "artifacts/pretrain/plain", CPU)
    nearest, _ = samples.nearest(encoder, rows, "train", 1, 3)
    assert [n.same_class for n in nearest[0].neighbours] == [None] * 3


def test_the_page_says_that_there_is_no_saliency(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    shutil.rmtree(project / "artifacts/saliency")
    html, _ = run_stage(project, monkeypatch)
    assert "There is no saliency store" in html and "Masked views" not in html
    assert "Pixels before and after" not in html and "Kernels of the first layer" in html


def test_the_demo_is_announced_and_its_best_is_not_bold(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    dataset = project / "artifacts/data/dataset.json"
    dataset.write_text(dataset.read_text().replace('"mine"', '"demo"'))
    dataset.with_name("provenance.json").unlink()  # it records the digest
    html, _ = run_stage(project, monkeypatch)
    assert "These numbers come from the demo. They show that the pipeline works." in html
    assert 'class="first best"' not in html


def test_a_partial_report_names_what_is_missing_and_why(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    shutil.rmtree(project / "artifacts/pretrain/masked")
    shutil.rmtree(project / "artifacts/evaluate/masked")
    shutil.rmtree(project / "artifacts/evaluate/plain/linear_fast")
    failed = project / "runs/pretrain-masked-000000000001"
    failed.mkdir(parents=True)
    (failed / "failure.txt").write_text("the loss is <nan>\nits log\n")
    html, output = run_stage(project, monkeypatch)
    assert "This report is partial." in html and "This report is partial." in output
    assert "<b>masked: no encoder</b>: the loss is &lt;nan&gt;</li>" in html
    assert "  masked: no encoder: the loss is <nan>\n" in output
    assert "  plain: no linear_fast: it has not been made yet\n" in output
    assert "+30.00" in output and "1 pretraining run " in html
    rows = json.loads((project / "artifacts/report/results.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["plain"]


def test_without_any_encoder_there_is_no_report(tmp_path, monkeypatch) -> None:
    project = make_project(tmp_path)
    shutil.rmtree(project / "artifacts/pretrain")
    monkeypatch.chdir(project)
    done = CliRunner().invoke(stage)
    assert done.exit_code == 2
    assert "no run has an encoder yet" in done.output and "plain: no encoder" in done.output


def test_scores_on_other_data_sets_are_shown_for_images_without_splits(tmp_path, monkeypatch):
    project = make_project(tmp_path, classes=(), splits=("train",))
    evaluated(project, "plain", "knn", {"transfer_shapes_top1": 51.25})
    html, output = run_stage(project, monkeypatch)
    assert "<h3>other data sets</h3>" in html and "51.25" in html and "51.25" in output
    assert "Nothing was evaluated" not in html
