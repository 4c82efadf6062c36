from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitfrost.errors import VitfrostError
from vitfrost.images.source import ImageSet, open_images
from vitfrost.vit.compat import import_timm


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, "PNG")


def pictures(root: Path, *names: str) -> Path:
    for name in names:
        picture(root / name)
    return root


def with_csv(root: Path, text: str) -> Path:
    (root / "labels.csv").write_text(text, encoding="utf-8")
    return root


def labeled(images: ImageSet) -> list[tuple[str, int]]:
    assert images.labels is not None
    return list(zip(images.files, images.labels, strict=True))


def test_class_folders_have_timms_indices_and_order(tmp_path: Path) -> None:
    import_timm()
    from timm.data.readers.reader_image_folder import find_images_and_targets

    pictures(tmp_path, "n10/b.png", "n2/x10.jpg", "n2/x9.JPEG", "B/1.PNG", "a/2.jpg", "a/12.jpg")
    images = open_images(tmp_path, need_labels=True)
    expected, _ = find_images_and_targets(str(tmp_path))
    assert [(str(tmp_path / file), label) for file, label in labeled(images)] == expected
    assert dict(labeled(images))["n10/b.png"] == 3


def test_images_nested_below_a_class_folder_belong_to_it(tmp_path: Path) -> None:
    images = open_images(pictures(tmp_path, "cat/deep/er/1.png", "cat/0.png", "dog/2.webp"), need_labels=True)
    assert dict(labeled(images)) == {"cat/0.png": 0, "cat/deep/er/1.png": 0, "dog/2.webp": 1}


def test_without_need_any_folder_is_searched_and_labels_are_not_read(tmp_path: Path) -> None:
    pictures(tmp_path, "z.png", "deep/a.BMP", ".hidden/b.png", "deep/.c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    with_csv(tmp_path, "nonsense")
    assert open_images(tmp_path) == ImageSet(tmp_path, ("deep/a.BMP", "z.png"), None)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with a picture, a link to one, a linked folder, and a loop."""
    pictures(tmp_path / "elsewhere", "1.png")
    root = pictures(tmp_path / "root", "a/0.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "2.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (root / "a" / "loop").symlink_to(root)
    return root


def test_links_are_left_out_by_name(linked: Path, messages: Callable[[], str]) -> None:
    assert open_images(linked).files == ("a/0.png",)
    (line,) = messages().splitlines()
    assert "3 symbolic links (a/2.png, a/loop, b) were left out; set VITFROST_FOLLOW_LINKS=1 to follow links" in line
    with_csv(linked, "file,label\na/0.png,3\na/2.png,1\nb/1.png,0\n")
    assert open_images(linked, need_labels=True).labels == (3,)


def test_links_are_followed_where_it_is_asked_for_and_loops_end(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITFROST_FOLLOW_LINKS", "1")
    assert open_images(linked).files == ("a/0.png", "a/2.png", "b/1.png")
    with_csv(linked, "file,label\na/0.png,3\na/2.png,1\nb/1.png,0\n")
    assert open_images(linked, need_labels=True).labels == (3, 1, 0)


def test_a_folder_of_links_says_how_to_go_on(tmp_path: Path) -> None:
    pictures(tmp_path / "images", "0.png", "1.png")
    subset = tmp_path / "subset"
    subset.mkdir()
    for name in ("0.png", "1.png"):
        (subset / name).symlink_to(tmp_path / "images" / name)
    with pytest.raises(VitfrostError, match=r"no images, but 2 symbolic links \(0.png, 1.png\); set VITFROST_FOLLOW_LINKS=1"):
        open_images(subset)
    (tmp_path / "top").symlink_to(tmp_path / "images")
    assert open_images(tmp_path / "top").files == ("0.png", "1.png")
    (tmp_path / "images" / "labels.csv").symlink_to("/etc/passwd")
    with pytest.raises(VitfrostError, match=r"labels.csv is a symbolic link, which is not followed"):
        open_images(tmp_path / "images", need_labels=True)


def test_labels_csv_of_the_folder_and_elsewhere(tmp_path: Path) -> None:
    root = pictures(tmp_path / "images", "b.png", "sub/a.png")
    table = tmp_path / "mine.csv"
    table.write_text("\ufeffwnid, label,file\nx,3,./sub/a.png\ny,0,b.png\n", encoding="utf-8")
    expected = ImageSet(root, ("b.png", "sub/a.png"), (0, 3))
    assert open_images(root, table) == expected
    with_csv(root, "file,label,wnid\nsub/a.png,3,x\n\nb.png,0,y\n")
    assert open_images(root, need_labels=True, classes=4) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header with the columns file,label"),
        ("a.png,0\nb.png,1\n", "no header with the columns file,label"),
        ("file,label\na.png,0\nb.png,1\nc.png,1\nd.png,1\n", r"not in .*: 'c.png' \(line 4\) and 1 more"),
        ("file,label\na.png,0\nb.png,1\n../outside.png,1\n", r"not in .*: '../outside.png' \(line 4\);"),
        ("file,label\n,0\na.png,0\nb.png,1\n", r"not in .*: '' \(line 2\);"),
        ("file,label\n", "misses an image of the folder: a.png and 1 more"),
        ("file,label\na.png,0\n", "misses an image of the folder: b.png;"),
        ("file,label\na.png,0\nb.png,1\n./a.png,0\n", r"names a file twice: './a.png' \(line 4\);"),
        ("file,label\na.png,cat\nb.png,1.5\n", r"not an integer: 'cat' for 'a.png' \(line 2\) and 1 more"),
        ("file,label\na.png\nb.png,1\n", r"not an integer: '' for 'a.png' \(line 2\);"),
        ("file,label\na.png,-1\nb.png,1\n", r"out of range: -1 for 'a.png' \(line 2\); labels must be 0 to 9"),
        ("file,label\na.png,9\nb.png,10\n", r"out of range: 10 for 'b.png' \(line 3\);"),
    ],
)
def test_faults_of_a_labels_csv(tmp_path: Path, text: str, message: str) -> None:
    picture(tmp_path / "outside.png")
    root = with_csv(pictures(tmp_path / "images", "a.png", "b.png"), text)
    with pytest.raises(VitfrostError, match=message) as caught:
        open_images(root, need_labels=True, classes=10)
    assert "\n" not in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_negative_labels_are_refused_without_a_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match="labels must be 0 or more"):
        open_images(with_csv(pictures(tmp_path, "a.png"), "file,label\na.png,-2\n"), need_labels=True)


def test_unreadable_labels_csv(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    with pytest.raises(VitfrostError, match=r"no labels CSV .*gone\.csv"):
        open_images(tmp_path, tmp_path / "gone.csv")
    with pytest.raises(VitfrostError, match="not readable"):
        open_images(tmp_path, tmp_path / "a.png")


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match=r"no image folder .*gone"):
        open_images(tmp_path / "gone")
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(VitfrostError, match=r"holds no images.*\.jpeg"):
        open_images(tmp_path)
    pictures(tmp_path, "one/a.png")
    with pytest.raises(VitfrostError, match=r"has no labels.*labels\.csv"):
        open_images(tmp_path, need_labels=True)
    pictures(tmp_path, "two/a.png", "three/a.png")
    with pytest.raises(VitfrostError, match="3 class folders but the model has 2 classes"):
        open_images(tmp_path, need_labels=True, classes=2)
    pictures(tmp_path, "stray.png")
    with pytest.raises(VitfrostError, match=r"outside its class folders: stray\.png"):
        open_images(tmp_path, need_labels=True)


@given(size=st.integers(1, 60), seed=st.integers(0, 2**32), limits=st.tuples(st.integers(1, 80), st.integers(1, 80)))
def test_draws_nest_and_keep_files_with_their_labels(size: int, seed: int, limits: tuple[int, int]) -> None:
    whole = ImageSet(Path("root"), tuple(f"{index}.png" for index in range(size)), tuple(range(size)))
    small, large = (whole.subset(limit, seed) for limit in sorted(limits))
    assert large.files[: len(small)] == small.files
    assert len(small) == min(min(limits), size)
    assert len(set(large.files)) == len(large)
    assert large.labels == tuple(int(file.split(".")[0]) for file in large.files)


def test_draws_differ_between_seeds_and_none_keeps_the_order() -> None:
    whole = ImageSet(Path("root"), tuple(f"{index}.png" for index in range(50)), None)
    assert whole.subset(None, 3) == whole
    assert whole.subset(50, 0).files != whole.subset(50, 1).files != whole.files
    for limit, seed in ((0, 0), (-1, 0), (1, -1)):
        with pytest.raises(VitfrostError):
            whole.subset(limit, seed)
