"""Folders and archives: the same files however they are packed, and nothing of what an archive should not hold."""

import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from textebm.data import image_files
from textebm.data.image_files import open_container
from textebm.errors import DataError

MEMBERS = {"b/2.png": b"two", "a/1.png": b"one" * 1000, "notes.txt": b""}
KINDS = ["x.tar", "x.tar.gz", "x.tgz", "x.tar.xz", "x.zip", "folder"]


def packed(write, tmp_path, kind, members=MEMBERS):
    return open_container(
        write.spread(tmp_path / kind, members) if kind == "folder" else write.pack(tmp_path / kind, members)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_however_they_are_packed(kind, write, tmp_path):
    files = packed(write, tmp_path, kind)
    assert files.names() == ("a/1.png", "b/2.png", "notes.txt")
    assert {name: files.read(name) for name in files.names()} == MEMBERS


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_files_are_left_out(kind, write, tmp_path):
    extra = {".hidden/x.png": b"x", "a/._1.png": b"x", "a/.DS_Store": b"x"}
    assert packed(write, tmp_path, kind, MEMBERS | extra).names() == ("a/1.png", "b/2.png", "notes.txt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_digest_tells_contents_apart(kind, write, tmp_path):
    first = packed(write, tmp_path, kind)
    other = tmp_path / "other"
    other.mkdir()
    second = packed(write, other, kind, MEMBERS | {"a/1.png": b"else"})
    assert first.digest(first.names) != second.digest(second.names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_is_too_large(kind, write, tmp_path, monkeypatch):
    files = packed(write, tmp_path, kind)
    monkeypatch.setattr(image_files, "LARGEST_MEMBER", 2999)
    with pytest.raises(DataError, match=r"a/1\.png: more than"):
        files.read("a/1.png")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there(kind, write, tmp_path):
    with pytest.raises(DataError, match=r"no member none\.png|no such file"):
        packed(write, tmp_path, kind).read("none.png")


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png"])
@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.zip"])
def test_a_path_that_leads_out(name, kind, write, tmp_path):
    with pytest.raises(DataError, match="leads out of the archive"):
        packed(write, tmp_path, kind, {"a.png": b"x", name: b"x"}).names()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(kind, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"member a\.png: a link or a device"):
        open_container(tmp_path / "x.tar").names()


def test_a_link_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"member a\.png: a link or a device"):
        open_container(tmp_path / "x.zip").names()


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.tar.xz"])
def test_a_bomb(kind, write, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "SMALLEST_LIMIT", 1 << 20)
    files = packed(write, tmp_path, kind, {"a.png": bytes(4 << 20)})
    with pytest.raises(DataError, match="more than 1,048,576 bytes, unpacked, which is 200 times its size"):
        files.names()


@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.tar.xz", "x.zip"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7])
def test_cut_short(kind, part, write, tmp_path):
    members = {f"{n}.png": bytes(range(256)) * 8 for n in range(10)}
    files = packed(write, tmp_path, kind, members)
    raw = files.path.read_bytes()
    files.path.write_bytes(raw[: int(part * len(raw))])

    def read():
        return [files.read(name) for name in files.names()]

    with pytest.raises(DataError, match=rf"{kind}.*(damaged|cut short)"):
        read()


@pytest.mark.parametrize("kind", ["x.tar", "x.tar.gz", "x.tar.xz", "x.zip"])
def test_no_archive_at_all(kind, tmp_path):
    (tmp_path / kind).write_bytes(b"Plainly, this is no archive." * 50)
    with pytest.raises(DataError, match=r"(damaged, cut short|damaged or cut short)"):
        open_container(tmp_path / kind).names()


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_an_archive_of_another_packing_than_its_name_says(pack, tmp_path):
    raw = io.BytesIO()
    tarfile.open(fileobj=raw, mode="w").close()
    ending = "xz" if pack is gzip.compress else "gz"
    (tmp_path / f"x.tar.{ending}").write_bytes(pack(raw.getvalue()))
    with pytest.raises(DataError, match=rf"x\.tar\.{ending}: cannot be read"):
        open_container(tmp_path / f"x.tar.{ending}").names()


def test_a_damaged_member_of_a_zip(write, tmp_path):
    path = write.pack(tmp_path / "x.zip", {"a.png": bytes(range(256)) * 8})
    raw = bytearray(path.read_bytes())
    raw[60] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"x\.zip: the archive is damaged"):
        open_container(path).read("a.png")


def test_links_to_folders_are_not_followed(write, tmp_path):
    folder = write.spread(tmp_path / "folder", MEMBERS)
    (folder / "loop").symlink_to(folder)
    assert open_container(folder).names() == ("a/1.png", "b/2.png", "notes.txt")


def test_neither_a_folder_nor_an_archive(tmp_path):
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        open_container(tmp_path / "x.rar")
