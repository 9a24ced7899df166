"""Rows, tables and pictures of evaluations."""

from pathlib import Path

import pytest
from PIL import Image

from visionattn.training.errors import UserError
from visionattn.validate import report
from visionattn.validate.evaluate import Result

ROW = dict(source="runs/a", weights="ema", images=9, image_size=32, top1=50.0, top5=90.0, loss=1.25, ece=3.0,
           images_per_s=1234.5)  # fmt: skip


def test_rows_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    for _ in range(2):
        report.Csv(path).add(ROW)
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and lines[1] == lines[2] and lines[0].split(",") == list(report.COLUMNS)
    assert dict(zip(report.COLUMNS, lines[1].split(",")))["top1"] == "50.0" and list(tmp_path.iterdir()) == [path]


def test_a_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is there, but no table of this command"):
        report.Csv(path)
    assert path.read_text() == "a,b\n1,2\n"


def test_the_table_shows_real_labels_where_any_model_has_them() -> None:
    assert "real" not in report.table([ROW])
    both = report.table([ROW, ROW | dict(real_top1=70.0, real_top5=None, source="b")]).splitlines()
    assert "real top-1 %" in both[0] and "70.00" in both[2] and len({len(line) for line in both}) == 1


def test_calibration_is_drawn(tmp_path: Path) -> None:
    bins = [(0, 0.0, 0.0), (3, 0.4, 0.3), (6, 0.9, 1.0)]
    result = Result(9, [], 50.0, 90.0, 1.0, 5.0, 10.0, 100.0, 1.0, bins)
    report.draw_reliability([("a", result), ("b", result)], tmp_path / "r.png")
    assert Image.open(tmp_path / "r.png").size[0] > 800 and len(list(tmp_path.iterdir())) == 1
