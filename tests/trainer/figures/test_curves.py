"""Curves of runs: the lines hold the numbers of metrics.jsonl."""

import math
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex

from pipeline import UsageError
from pipeline.images.figure import COLORS, figure_bytes
from trainer.figures.curves import PANELS, Course, draw_curves, read_courses
from trainer.runs.metrics_file import add_metrics
from trainer.runs.records import MetricsRow


def row(epoch, lr=0.01):
    return MetricsRow(
        kind="epoch",
        epoch=epoch,
        epochs_done=epoch,
        steps=10 * epoch,
        lr=lr,
        train_loss=2.0 / epoch,
        train_top1=0.1 * epoch,
        val_loss=2.5 / epoch,
        val_top1=0.12 * epoch,
        val_top5=0.15 * epoch,
        train_seconds=10.0,
        val_seconds=1.0,
        images_per_second=100.0 + epoch,
    )


@pytest.fixture
def folders(tmp_path):
    """Two runs, of three epochs and of one; both folders are called `run`."""
    found = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for folder, epochs in zip(found, (3, 1), strict=True):
        folder.mkdir(parents=True)
        for epoch in range(1, epochs + 1):
            add_metrics(folder, row(epoch))
    return found


def lines_of(axes):
    """(color, style, epochs, values) of each line."""
    return [
        (to_hex(line.get_color()), line.get_linestyle(), *map(list, line.get_data())) for line in axes.lines
    ]


def test_every_panel_holds_the_runs_numbers(folders):
    axes = draw_curves(read_courses(folders)).axes
    one, two = (color.lower() for color in COLORS[:2])
    loss, top1, top5, lr = (lines_of(panel) for panel in axes[: len(PANELS)])
    assert loss == [
        (one, "--", [1, 2, 3], [2.0, 1.0, 2.0 / 3]),
        (two, "--", [1], [2.0]),
        (one, "-", [1, 2, 3], [2.5, 1.25, 2.5 / 3]),
        (two, "-", [1], [2.5]),
    ]
    assert [line[3] for line in top1[2:]] == [[0.12, 0.24, 0.12 * 3], [0.12]]
    assert [line[3] for line in top5] == [[0.15, 0.3, 0.15 * 3], [0.15]]
    assert [line[3] for line in lr] == [[0.01] * 3, [0.01]]
    assert all(line.get_marker() != "None" for line in axes[0].lines)  # markers show a single epoch


def test_validations_within_epochs_are_points_of_the_solid_curves_alone():
    within = replace(row(2), kind="validation", epochs_done=1.5, val_loss=9.0, train_loss=7.0, lr=0.05)
    axes = draw_curves([Course("r", (row(1), within, row(2)))], [*PANELS, "throughput"]).axes
    loss, top1, _, lr, throughput = (lines_of(panel) for panel in axes[:5])
    assert [line[2:] for line in loss] == [([1, 2], [2.0, 1.0]), ([1, 1.5, 2], [2.5, 9.0, 1.25])]
    assert [line[2] for line in top1] == [[1, 2], [1, 1.5, 2]]
    assert lr[0][2:] == ([1, 1.5, 2], [0.01, 0.05, 0.01])
    assert throughput[0][2:] == ([1, 2], [101.0, 102.0])


def test_runs_without_validation_are_drawn_without_its_curves():
    unvalidated = replace(row(1), val_loss=None, val_top1=None, val_top5=None)
    figure = draw_curves([Course("r", (unvalidated,))])
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == [
        *("loss, nats", "top-1 accuracy", "learning rate"),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training, as augmented"]
    both = draw_curves([Course("r", (unvalidated,)), Course("s", (row(1),))], ["top-5"])
    assert [line[3] for line in lines_of(both.axes[0])] == [[], [0.15]]
    with pytest.raises(UsageError, match="no top-5 yet, or were not validated"):
        draw_curves([Course("r", (unvalidated,))], ["top-5"])


def test_equal_folder_names_are_distinguished(folders, tmp_path):
    assert [course.name for course in read_courses(folders)] == ["a/run", "b/run"]
    assert [course.name for course in read_courses(folders[:1])] == ["run"]
    assert [course.name for course in read_courses([folders[0], folders[0]])] == ["run", "run"]


def test_the_legend_names_the_runs_and_kinds_of_lines(folders):
    (legend,) = draw_curves(read_courses(folders)).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["a/run", "b/run", "validation, center crop", "training, as augmented"]
    (legend,) = draw_curves(read_courses(folders[:1]), ["loss"]).legends
    assert len(legend.get_texts()) == 2


@pytest.mark.parametrize(
    ("lrs", "scale"), [([0.01, 0.005], "linear"), ([0.01, 0.0001], "log"), ([0.01, 0.0], "linear")]
)
def test_a_learning_rate_that_changes_much_gets_a_logarithmic_axis(lrs, scale):
    course = Course("r", tuple(row(epoch, lr) for epoch, lr in enumerate(lrs, start=1)))
    figure = draw_curves([course], ["lr"])
    assert figure.axes[0].get_yscale() == scale
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert not any("$" in label or "mathdefault" in label for label in labels)


def test_more_runs_than_colors_differ_in_markers():
    courses = [Course(f"r{k}", (row(1), row(2))) for k in range(len(COLORS) + 1)]
    lines = draw_curves(courses, ["top-5"]).axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(courses)


def test_a_diverged_run_can_be_drawn():
    course = Course("r", (row(1), replace(row(2), train_loss=math.nan)))
    assert figure_bytes(draw_curves([course]), "png")


def test_runs_without_epochs(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path / 'no'}: no such run"):
        read_courses([tmp_path / "no"])
    with pytest.raises(UsageError, match=r"no metrics.jsonl with a finished epoch"):
        read_courses([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        read_courses([tmp_path])
