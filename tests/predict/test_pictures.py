"""Which pictures files, folders and lists name."""

from pathlib import Path

import pytest
from PIL import Image

from visionattn.predict.pictures import collect, read
from visionattn.training.errors import Unreadable, UserError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("a.png", "f/b.jpg", "f/g/c.PNG", "f/notes.txt", "h/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("words")
        else:
            Image.new("L", (5, 4)).save(tmp_path / name)
    return tmp_path


def test_files_folders_and_lists_in_order_each_once(place: Path) -> None:
    (place / "l.txt").write_text(f"# mine\n\nf/b.jpg\n{place / 'h' / 'a.png'}\n")
    found = collect([str(place / "a.png"), str(place / "f"), str(place / "l.txt")])
    assert [str(one.path.relative_to(place)) for one in found] == ["a.png", "f/b.jpg", "f/g/c.PNG", "h/a.png"]
    assert [one.label for one in found] == ["a.png", "b.jpg", "g/c.PNG", "a-2.png"], "labels are unique"


def test_what_is_not_there_is_named(place: Path) -> None:
    (place / "empty").mkdir()
    (place / "l.txt").write_text("f/b.jpg\nx.png\n")
    (place / "e.txt").write_text("# none\n")
    messages = {
        "x.png": "does not exist", "empty": "holds no images", "l.txt": "line 2: x.png does not exist",
        "e.txt": "names no images",
    }  # fmt: skip
    for source, message in messages.items():
        with pytest.raises(UserError, match=message):
            collect([str(place / source)])


def test_pictures_become_rgb_and_others_unreadable(place: Path) -> None:
    assert read(collect([str(place / "a.png")])[0]).mode == "RGB"
    (place / "a.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match="a.png"):
        read(collect([str(place / "a.png")])[0])
