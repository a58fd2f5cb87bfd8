"""Folders of images: which files make a sample, at any depth."""

import json
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg
from tests.trainer.shards.made import pairs, samples, write
from trainer.data.shards.captions import CaptionRule
from trainer.errors import UserError
from trainer.shards.folder import Folder
from trainer.shards.source import Found
from trainer.shards.unfit import Bad


def found_in(folder: Path) -> tuple[dict[str, dict[str, str]], list[Bad]]:
    """Files by key, and what cannot be used."""
    found = list(Folder(folder, CaptionRule()).find())
    return {each.key: each.place for each in found if isinstance(each, Found)}, [each for each in found if isinstance(each, Bad)]


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_what_lies_beside_an_image_belongs_to_it(tmp_path: Path):
    lay(tmp_path, "a/1.jpg", "a/1.txt", "a/1.json", "b/1.PNG", "b/1.TXT", "2.0.webp", "2.0.txt", "3.jpg", "3.jpg.txt", "3.cls")
    assert found_in(tmp_path)[0] == {
        "2.0": {"webp": "2.0.webp", "txt": "2.0.txt"},
        "3": {"jpg": "3.jpg", "txt": "3.jpg.txt", "cls": "3.cls"},
        "a/1": {"jpg": "a/1.jpg", "txt": "a/1.txt", "json": "a/1.json"},
        "b/1": {"png": "b/1.PNG", "txt": "b/1.TXT"},
    }


def test_litter_and_what_is_no_image_is_passed_over(tmp_path: Path):
    lay(
        tmp_path,
        "1.jpg",
        ".hidden.jpg",
        "__MACOSX/1.jpg",
        "._1.jpg",
        "notes.txt",
        "00000_stats.json",
        "00000.parquet",
        ".git/a.png",
    )
    assert found_in(tmp_path) == ({"1": {"jpg": "1.jpg"}}, [])


def test_a_second_image_of_the_same_name_is_listed(tmp_path: Path):
    lay(tmp_path, "a/1.png", "a/1.jpg", "a/1.txt")
    files, bad = found_in(tmp_path)
    assert files == {"a/1": {"jpg": "a/1.jpg", "txt": "a/1.txt"}}
    assert bad == [Bad("a/1.png", "another image of the same name", "1.jpg is used")]


def test_links_are_followed_but_not_in_circles(tmp_path: Path):
    photos = lay(tmp_path / "elsewhere", "x/1.jpg")
    source = lay(tmp_path / "photos", "2.jpg")
    (source / "linked").symlink_to(photos)
    (photos / "back").symlink_to(source)
    assert set(found_in(source)[0]) == {"2", "linked/x/1"}


def test_img2datasets_files_become_shards(tmp_path: Path):
    source = tmp_path / "out" / "00000"
    source.mkdir(parents=True)
    for number in range(3):
        stem = f"{number:09}"
        (source / f"{stem}.jpg").write_bytes(jpeg(number))
        (source / f"{stem}.txt").write_text(f"caption {number}")
        (source / f"{stem}.json").write_text(json.dumps({"caption": f"caption {number}", "status": "success", "key": stem}))
    for name in ("00000.parquet", "00000_stats.json"):
        (tmp_path / "out" / name).write_text("{}")
    write(tmp_path / "out", f"output={tmp_path / 'shards'}", "shuffle=false")
    assert [(key, captions) for key, _, captions in pairs(tmp_path / "shards")] == [
        (f"00000/{number:09}", [f"caption {number}"]) for number in range(3)
    ]
    assert [json.loads(sample.files["json"])["key"] for sample in samples(tmp_path / "shards")][-1] == "000000002"


@pytest.mark.parametrize(
    ("given", "captions"), [([], ["one two"]), (["caption_lines=true"], ["one", "two"]), (["caption_key=alt"], ["x"])]
)
def test_captions_are_read_as_training_reads_them(tmp_path: Path, given: list[str], captions: list[str]):
    source = tmp_path / "photos"
    source.mkdir()
    (source / "1.jpg").write_bytes(jpeg(1))
    (source / "1.txt").write_text("one\ntwo\n")
    (source / "1.json").write_text('{"alt": "x"}')
    write(source, f"output={tmp_path / 'out'}", *given)
    assert pairs(tmp_path / "out")[0][2] == captions


def test_metadata_can_be_left_out(tmp_path: Path):
    source = tmp_path / "photos"
    source.mkdir()
    for name, content in (("1.jpg", jpeg(1)), ("1.txt", b"one"), ("1.json", b'{"a": 1}'), ("1.cls", b"7")):
        (source / name).write_bytes(content)
    write(source, f"output={tmp_path / 'out'}", "metadata=false")
    assert set(samples(tmp_path / "out")[0].files) == {"jpg", "txt", "cls"}


def test_a_folder_of_shards_and_images_is_a_question(tmp_path: Path):
    lay(tmp_path, "1.jpg", "000.tar")
    with pytest.raises(UserError, match=r"contains shards and images: give '.*/\*.tar', or put them apart"):
        write(tmp_path, f"output={tmp_path / 'out'}")
