"""The report on several labels: its table, its mistakes, and names that are anything."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_report import make_report, pictures, tables
from tlx.evaluation.multi_label import ClassScores, Mistake, _fitting, section
from tlx.evaluation.report import write_report

RECORDS = [
    {"step": 10, "train/loss": 1.0, "train/f1_micro": 0.5, "train/lr": 0.01},
    {"step": 10, "val/loss": 0.9, "val/f1_micro": 0.4, "val/mAP": None},
    {"step": 20, "val/loss": 0.9, "val/f1_micro": 0.4, "val/mAP": 0.3},
]


def scores(count):
    values = np.linspace(0.2, 0.8, count)
    support = np.arange(count)
    return ClassScores(
        support,
        average_precision=np.where(support > 0, values, np.nan),
        precision=values / 2,
        recall=np.where(support > 0, values / 4, np.nan),
        f1=values / 8,
    )


def mistake(index, **changes):
    fields = {
        "image": np.full((8, 8, 3), 20 * index, np.uint8),
        "name": f"test/{index}",
        "targets": [0, 1],
        "predicted": [],
        "furthest": 1,
        "probability": 0.02,
        "loss": 9.0 - index,
    }
    return Mistake(**fields | changes)


def written(tmp_path, names=("ant", "bee", "fly"), mistakes=(), right=7, examples=10):
    made = section(scores(len(names)), names, mistakes, right=right, examples=examples)
    return write_report(tmp_path, make_report(records=RECORDS, section=made)).read_text()


def test_the_section_has_a_table_of_classes_and_the_worst_mistakes(tmp_path):
    text = written(
        tmp_path, mistakes=[mistake(0), mistake(1, targets=[], predicted=[0, 2], furthest=2)]
    )
    assert pictures(tmp_path) == {"curves", "mistakes"}
    for picture in re.findall(r"!\[.+\]\((.+)\)", text):
        with Image.open(tmp_path / picture) as image:
            assert np.asarray(image.convert("L")).std() > 5  # not blank
    _, classes, names = tables(text)
    assert classes[0] == ["", "class", "examples", "AP", "precision", "recall", "F1"]
    assert classes[2:] == [
        ["0", "ant", "0", "", "0.100", "", "0.025"],
        ["1", "bee", "1", "0.500", "0.250", "0.125", "0.062"],
        ["2", "fly", "2", "0.800", "0.400", "0.200", "0.100"],
    ]
    assert names[2:] == [
        ["test/0", "ant, bee", "none", "bee", "0.020", "9"],
        ["test/1", "none", "ant, fly", "fly", "0.020", "8"],
    ]
    assert "7 of 10 examples were given exactly their labels" in text
    assert "1 of 3 have none and no AP" in text
    assert "The 2 examples, of 3 with a wrong label, that have the highest loss; below" in text
    assert "confusion" not in text.lower()
    assert "![Curves of loss, f1\\_micro and mAP over the steps](report/curves.png)" in text


def test_no_mistake_leaves_no_picture(tmp_path):
    written(tmp_path, mistakes=[mistake(0)])
    text = written(tmp_path, right=10)
    assert pictures(tmp_path) == {"curves"} and "Worst mistakes" not in text


def test_no_example_at_all(tmp_path):
    assert "No example" in written(tmp_path, right=0, examples=0)


def test_many_classes_and_labels(tmp_path):
    names = [f"class {index}" for index in range(60)]
    wrong = mistake(0, targets=list(range(30)), predicted=list(range(10)))
    _, lowest, everything, mistakes = tables(written(tmp_path, names, [wrong] * 30))
    assert len(lowest) == 22 and lowest[2][1] == "class 1" and len(everything) == 62
    assert mistakes[2][1].endswith("class 9, ...") and mistakes[2][2].endswith("class 9")
    assert len(mistakes) == 22


def test_a_caption_names_as_many_labels_as_fit():
    assert _fitting([]) == "none"
    assert _fitting(["cat", "dog"]) == "cat, dog"
    assert _fitting(["a" * 24, "cat"]) == "a" * 24 + " +1"
    assert _fitting(["cat", "dog", "b" * 15, "c"]) == "cat, dog +2"


@pytest.mark.filterwarnings("error")
def test_names_that_are_markdown_formulas_or_foreign(tmp_path):
    names = ("a|b", "<b>d</b>", "$e_1$ $", "日本語", "🐜" * 300, "x" * 300)
    wrong = [mistake(i, targets=[i, 0, 3, 5], furthest=i) for i in range(6)]
    text = written(tmp_path, names, wrong)
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)
    assert "<b>" not in text
