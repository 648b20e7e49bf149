"""The report: what it shows, what it survives, and that nothing in a name changes its structure."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from tlx.evaluation import figures
from tlx.evaluation.markdown import escape
from tlx.evaluation.report import Report, Shown, write_report
from tlx.evaluation.single_label import Mistake, section

RECORDS = [
    {"step": 10, "train/loss": 1.0, "train/accuracy": 0.5, "train/lr": 0.01},
    {"step": 20, "train/loss": None, "train/accuracy": 0.6, "train/lr": 0.02},
    {"step": 20, "val/loss": 0.9, "val/accuracy": 0.55},
]


def make_report(
    names=("ant", "bee", "fly"), *, mistakes=3, confusion=None, per_class=None, **changes
):
    count = len(names)
    if confusion is None:
        confusion = 3 * np.eye(count, dtype=int) + np.roll(np.eye(count, dtype=int), 1, axis=1)
    if per_class is None:
        per_class = np.diag(confusion) / confusion.sum(axis=1)
    if isinstance(mistakes, int):
        mistakes = made_up(names, mistakes)
    report = Report(
        title="a run",
        command="python -m tlx.main --config=configs/digits.py",
        summary={"test/accuracy": 0.75, "steps": 12345, "versions": {"jax": "0.10.2"}, "nan": None},
        plan_table="group  lr\nhead   0.1",
        records=RECORDS,
        split="test",
        section=section(confusion, per_class, tuple(names), mistakes),
    )
    return dataclasses.replace(report, **changes)


def made_up(names, mistakes):
    count = len(names)
    return [
        Mistake(
            image=np.full((8, 8, 3), 20 * index, np.uint8),
            name=f"test/{index}",
            target=names[index % count],
            predicted=names[(index + 1) % count],
            probability=0.5,
            loss=float(index),
        )
        for index in range(mistakes)
    ]


def pictures(workdir):
    return {path.stem for path in (workdir / "report").iterdir()}


def tables(text):
    """Returns each Markdown table as rows of cells, split where no backslash precedes the bar."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    return [
        [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        for block in blocks
    ]


def test_a_full_report_shows_everything(tmp_path):
    path = write_report(tmp_path, make_report())
    text = path.read_text()
    assert path == tmp_path / "report.md"
    assert pictures(tmp_path) == {"curves", "confusion", "mistakes"}
    for picture in re.findall(r"!\[.+\]\((.+)\)", text):
        with Image.open(tmp_path / picture) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5  # not blank
    summary, classes, names = tables(text)
    assert ["test/accuracy", "0.75"] in summary
    assert ["steps", "12,345"] in summary
    assert ["versions/jax", "0.10.2"] in summary
    assert classes[2:] == [
        ["0", "ant", "4", "0.750", "bee (1)"],
        ["1", "bee", "4", "0.750", "fly (1)"],
        ["2", "fly", "4", "0.750", "ant (1)"],
    ]
    assert [row[0] for row in names[2:]] == ["test/2", "test/1", "test/0"]  # highest loss first
    assert "9 of 12 examples are right" in text
    assert "```text\ngroup  lr\nhead   0.1\n```" in text
    assert "```sh\npython -m tlx.main --config=configs/digits.py\n```" in text


def test_what_is_absent_is_left_out_and_stale_pictures_go(tmp_path):
    write_report(tmp_path, make_report())
    report = make_report(records=[], mistakes=0, plan_table="")
    text = write_report(tmp_path, report).read_text()
    assert pictures(tmp_path) == {"confusion"}
    assert "## Training" not in text
    assert "## What was trained" not in text
    assert "mistakes" not in text


def test_what_was_chosen_is_a_table_with_the_reasons(tmp_path):
    choices = [("tune.method", "head", "3 examples a class"), ("train.steps", "50", "a | b")]
    text = write_report(tmp_path, make_report(choices=choices)).read_text()
    assert text.index("## What was chosen") < text.index("## What was trained")
    assert tables(text)[1] == [
        ["field", "value", "reason"],
        ["---", "---", "---"],
        ["tune.method", "head", "3 examples a class"],
        ["train.steps", "50", r"a \| b"],
    ]
    assert "What was chosen" not in write_report(tmp_path, make_report()).read_text()


def test_no_example_at_all(tmp_path):
    nothing = make_report(mistakes=0, confusion=np.zeros((3, 3), int), per_class=np.full(3, np.nan))
    assert "No example" in write_report(tmp_path, nothing).read_text()
    assert pictures(tmp_path) == {"curves"}


def test_a_class_without_examples_has_no_accuracy(tmp_path):
    report = make_report(
        confusion=np.diag([2, 0, 0]), per_class=np.array([1.0, np.nan, np.nan]), mistakes=0
    )
    rows = tables(write_report(tmp_path, report).read_text())[1]
    assert rows[2:4] == [["0", "ant", "2", "1.000", ""], ["1", "bee", "0", "", ""]]


@pytest.mark.parametrize(
    "records", [RECORDS[:1], [r for r in RECORDS if "val/loss" not in r], RECORDS[2:]]
)
def test_curves_without_validation_or_with_one_point(tmp_path, records):
    write_report(tmp_path, make_report(records=records))
    assert "curves" in pictures(tmp_path)


def test_records_of_other_things_draw_nothing(tmp_path):
    write_report(tmp_path, make_report(records=[{"step": 1, "data/seconds": 2.0}]))
    assert "curves" not in pictures(tmp_path)


def test_many_classes(tmp_path):
    names = [f"class {index}" for index in range(1000)]
    per_class = np.full(1000, 0.75)
    per_class[123], per_class[5] = 0.1, np.nan
    report = make_report(names, mistakes=1, per_class=per_class)
    text = write_report(tmp_path, report).read_text()
    _, pairs, lowest, everything, _ = tables(text)
    assert pairs[2] == ["class 0", "class 1", "1", "25.0%"]
    assert len(pairs) == len(lowest) == 22
    assert lowest[2][1] == "class 123"
    assert len(everything) == 1002
    with Image.open(tmp_path / "report" / "confusion.png") as image:
        assert min(image.size) > 1000  # a class keeps at least a pixel


@pytest.mark.filterwarnings("error")
def test_names_that_are_markdown_formulas_or_foreign(tmp_path):
    names = (
        "a|b",
        "`c`",
        "<b>d</b>",
        "$e_1$ $",
        "日本語",
        "f\ng",
        "*h*_i_",
        "🐜" * 300,
        "\\frac",
        "x" * 300,
    )
    text = write_report(tmp_path, make_report(names, mistakes=10, title="# <x>")).read_text()
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)
    assert "<b>" not in text
    assert text.startswith("# \\# &lt;x&gt;\n")


def test_escape_is_undone_by_markdown():
    text = "a|b `c` <d> *e* _f_ [g] ~~h~~ $i$ \\ & #"
    shown = re.sub(r"\\(.)", r"\1", escape(text))
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    assert shown == text


def test_a_fence_in_the_plan_does_not_end_it(tmp_path):
    text = write_report(tmp_path, make_report(plan_table="a\n```\nb")).read_text()
    assert "````text\na\n```\nb\n````" in text


def test_drawable_names():
    assert figures.drawable("naïve", "-", 10) == "naïve"
    assert figures.drawable("日本語", "class 1", 10) == "class 1"
    assert figures.drawable("ant 🐜", "-", 10) == "ant"
    assert figures.drawable("abcdef", "-", 4) == "abc…"
    assert figures.drawable("$", "-", 4) == r"\$"
    assert figures.drawable("+", "-", 4) == "+"


def test_mistakes_of_any_shape_and_a_nan_loss_is_the_worst(tmp_path):
    shapes = [(1, 1), (500, 20), (20, 500)]
    wrong = [
        Mistake(np.zeros((*shape, 3), np.uint8), f"p{index}", "ant", "bee", 1.0, loss)
        for index, (shape, loss) in enumerate(zip(shapes, [1.0, float("nan"), 3.0], strict=True))
    ]
    rows = tables(write_report(tmp_path, make_report(mistakes=wrong)).read_text())[-1]
    assert [row[0] for row in rows[2:]] == ["p1", "p2", "p0"]


def test_a_full_disk_leaves_the_old_report(tmp_path, monkeypatch):
    before = write_report(tmp_path, make_report()).read_bytes()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, make_report(title="another"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert (tmp_path / "report.md").read_bytes() == before


def test_mistakes_of_texts_are_a_table_without_a_picture(tmp_path):
    write_report(tmp_path, make_report())  # whose picture goes
    wrong = [
        Mistake(None, f"test.csv line {i}", "ant", "bee", 0.9, float(i), text)
        for i, text in enumerate(["a|b *c*", "x" * 2000])
    ]
    text = write_report(tmp_path, make_report(mistakes=wrong)).read_text()
    assert pictures(tmp_path) == {"curves", "confusion"}
    rows = tables(text)[-1]
    assert rows[0] == ["example", "text", "true", "predicted", "probability", "loss"]
    assert rows[2] == ["test.csv line 1", "x" * 400 + "…", "ant", "bee", "0.900", "1"]
    assert rows[3] == ["test.csv line 0", r"a\|b \*c\*", "ant", "bee", "0.900", "0"]
    assert "Grid" not in text and "<details>" not in text


def test_the_text_of_a_shown_example_has_all_its_parts():
    assert Shown(0, None, "x", "one text").as_text == "one text"
    assert Shown(0, None, "x", ("a premise", "a hypothesis")).as_text == "a premise / a hypothesis"
