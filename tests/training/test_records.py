"""The CSV files: keys, replacement, whole writes, clear errors."""

import pytest
import torch

from visionattn.training import records
from visionattn.training.errors import UserError

COLUMNS, KEY = ("name", "pass", "ms", "note"), ("name", "pass")


def make(path):
    return records.Records(path, COLUMNS, KEY)


def test_a_new_measurement_replaces_the_old_one_and_keeps_the_others(tmp_path):
    path = tmp_path / "folder" / "a.csv"
    first = make(path)
    first.add(name="x", **{"pass": "f"}, ms=1.0)
    first.add(name="y", **{"pass": "f"}, ms=2.0, note='with "quotes", commas')
    first.write()
    second = make(path)
    second.add(name="x", **{"pass": "f"}, ms=0.123456)
    second.write()
    rows = {row["name"]: row for row in records.read(path)}
    assert rows["x"]["ms"] == "0.1235"
    assert rows["y"] == {"name": "y", "pass": "f", "ms": "2", "note": 'with "quotes", commas'}


def test_writing_leaves_no_temporary_file(tmp_path):
    kept = make(tmp_path / "a.csv")
    kept.write()
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_large_figures_keep_their_digits(tmp_path):
    assert make(tmp_path / "a.csv").add(name="x", ms=11955.4)["ms"] == "11955"


def test_unknown_column_is_an_error(tmp_path):
    with pytest.raises(KeyError, match="seconds"):
        make(tmp_path / "a.csv").add(seconds=1.0)


def test_a_file_of_another_kind_is_refused_rather_than_overwritten(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("other,columns\n1,2\n")
    with pytest.raises(UserError, match="another kind of file"):
        make(path)
    assert path.read_text() == "other,columns\n1,2\n"


def test_a_path_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        make(tmp_path / "file" / "a.csv").write()


def test_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        records.read(tmp_path / "nope.csv")


def test_origin_has_every_origin_column():
    found = records.origin(torch.device("cpu"), code_revision="abc")
    assert tuple(found) == records.ORIGIN
    assert found["revision"] == "abc" and found["torch"] == torch.__version__
