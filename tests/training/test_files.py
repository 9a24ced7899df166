"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from visionattn.training.errors import UserError
from visionattn.training.files import aside, require_free


def test_what_had_the_name_stays_where_writing_fails_and_nothing_is_left_behind(tmp_path: Path) -> None:
    file = tmp_path / "f.txt"
    file.write_text("old")
    with pytest.raises(ZeroDivisionError):
        with aside(file) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for name in ("a", "b"):
        with aside(folder) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [folder]


def test_places_that_are_taken_or_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    require_free(tmp_path / "new" / "deep.txt", "out")
    require_free(tmp_path / "file", "out", overwrite=True)
    with pytest.raises(UserError, match="out: .*file is there already; --overwrite replaces it"):
        require_free(tmp_path / "file", "out")
    with pytest.raises(UserError, match="file is no folder that may be written to"):
        require_free(tmp_path / "file" / "below", "out")
    with pytest.raises(UserError, match="cannot be written"), aside(tmp_path / "file" / "below") as temporary:
        temporary.write_text("")
