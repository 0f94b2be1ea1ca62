"""Data is never a program: no source could run what a file says, and what pretends to be data is refused."""

import ast
import builtins
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from textebm.data.image_decoding import LARGEST_PIXELS, Picture, opened
from textebm.data.image_files import open_container
from textebm.data.image_formats import read_cifar_batch, read_idx, read_mat
from textebm.data.plain_pickle import load_plain
from textebm.errors import DataError, TextebmError

ROOMS = ("textebm", "lm_eval", "data")
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
READS_PICKLES = ("data/plain_pickle.py",)
"""The one module that knows pickles: by their instructions, none of which it runs as they are."""
NEVER = {
    "eval": "runs text",
    "exec": "runs text",
    "__import__": "imports what text names",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "yaml.load": "may make any object",
    "yaml.load_all": "may make any object",
    "yaml.unsafe_load": "makes any object",
    "yaml.full_load": "makes many objects",
    "shutil.unpack_archive": "writes where an archive says",
}
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Calls that are safe with this setting alone, which must be written out."""
FORBIDDEN_SETTINGS = {"trust_remote_code": False, "shell": False, "allow_pickle": False}
"""Settings that may be given as this value only."""


def complaints(source: str, name: str) -> list[str]:
    """What in a source could run data, with its file and line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom) and name not in READS_PICKLES:
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"{where}: imports {m}" for m in modules if m.split(".")[0] in PICKLES]
        if isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"{where}: imports {each} by itself" for each in full & (NEVER.keys() | NEEDS.keys())]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in NEVER:
                found.append(f"{where}: {called} {NEVER[called]}")
            if called.endswith((".extractall", ".extract")):
                found.append(f"{where}: {called} writes where an archive says")
            settings = {word.arg: word.value for word in node.keywords}
            if called in NEEDS:
                key, wanted = NEEDS[called]
                if not (isinstance(settings.get(key), ast.Constant) and settings[key].value is wanted):
                    found.append(f"{where}: {called} without {key}={wanted}")
            for key, allowed in FORBIDDEN_SETTINGS.items():
                value = settings.get(key)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is allowed):
                    found.append(f"{where}: {key} is not {allowed}")
    return found


def test_no_source_could_run_data(root: Path) -> None:
    files = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    assert len(files) > 100
    found = [
        said
        for path in files
        for said in complaints(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import dill as d",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from torch import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=asked)",
        "yaml.load(text, Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "load_dataset(name, trust_remote_code=asked)",
        "archive.extractall(folder)",
    ],
)
def test_what_could_is_found(source: str) -> None:
    assert complaints(f"x = 1\n{source}\n", "data/x.py")[0].startswith("data/x.py:2: ")


@pytest.mark.parametrize(
    "source",
    ["network.eval()", "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "yaml.safe_load(t)"],
)
def test_what_could_not_is_left_alone(source: str) -> None:
    assert complaints(source, "data/x.py") == []


class Evil:
    """Pickles as a call."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call


CALLS = {
    "os.system": Evil(os.system, ("touch pickled",)),
    "eval": Evil(builtins.eval, ("__import__('os').mkdir('pickled')",)),
    "getattr": Evil(builtins.getattr, ("x", "join")),
    "mkdir": Evil(os.mkdir, ("pickled",)),
    "a buffer of numpy": Evil(np.frombuffer, (b"1234", "O")),
    "a load of numpy": Evil(np.load, ("pickled",)),
    "a path": Evil(Path, ("pickled",)),
}
RAW = {
    "a persistent id": b"Pname\n.",
    "a persistent id from the stack": b"\x80\x02K\x01Q.",
    "an object made anew": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "an instance of old": b"(inumpy\nndarray\n.",
    "a registered extension": b"\x80\x02\x82\x01.",
    "a set": b"\x80\x04\x8f.",
    "a state for a function": b"\x80\x02c_codecs\nencode\n}X\x04\x00\x00\x00nameK\x01sb.",
    "a state for a class": b"\x80\x02cnumpy\ndtype\n}b.",
    "a state for a list": b"\x80\x02]}b.",
    "a name that leads on": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.tofile\x93.",
    "a module of ours": b"cos\nsystem\n.",
}


class TestPickles:
    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("protocol", range(6))
    def test_no_call_is_made(self, name, protocol, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="it wants to import"):
            read_cifar_batch(pickle.dumps({"data": CALLS[name], "labels": [1]}, protocol), "x")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", RAW)
    def test_no_other_instruction_is_followed(self, name):
        with pytest.raises(DataError, match="x: not read as a pickle of numbers"):
            load_plain(RAW[name], "x")

    def test_the_names_that_are_known_stand_for_descriptions(self):
        from textebm.data import plain_pickle

        known = plain_pickle._PlainUnpickler.KNOWN.values()
        assert {each.__module__ for each in known} == {plain_pickle.__name__}

    @pytest.mark.parametrize(
        "raw",
        [
            b"\x80\x02Nr\xff\xff\xff\x7f.",  # a table of objects with room for two thousand million
            b"\x80\x04\x8e\xff\xff\xff\xff\x7f\x00\x00\x00.",  # so many bytes, of which none is there
            b"\x80\x05\x96\xff\xff\xff\xff\x7f\x00\x00\x00.",
            b"\x80\x04\x95\xff\xff\xff\xff\x7f\x00\x00\x00.",  # a frame of so many
        ],
    )
    def test_no_memory_is_set_aside_for_what_is_not_there(self, raw, peak_memory):
        with peak_memory(megabytes=64), pytest.raises(DataError, match="x: "):
            batch = read_cifar_batch(raw, "x")
            del batch

    def test_a_tuple_of_tuples_of_tuples(self):
        doubled = b"\x80\x02)" + b"2\x86" * 60  # 2 ** 60 of them, if anybody were to go through them
        for raw in (doubled + b"K\x01s.", b"\x80\x02}" + doubled[2:] + b"K\x01s.", b"(" + doubled[2:] + b"K\x01d."):
            with pytest.raises(DataError, match="key of a dictionary"):
                load_plain(raw, "x")
        described = (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + doubled[2:] + b"cnumpy\ndtype\n)RNU\x01xtb."
        )
        with pytest.raises(DataError, match=r"shape|numbers"):
            load_plain(described, "x").values("x")


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, raw in members:
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


class TestArchives:
    @pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "a\\..\\x.png", "C:\\x.png"])
    def test_paths_that_lead_out(self, name, tmp_path):
        tar_of(tmp_path / "x.tar", (tarfile.TarInfo(name), b"x"))
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo(name), b"x")
        for kind in ("x.tar", "x.zip"):
            with pytest.raises(DataError, match="leads out of the archive"):
                open_container(tmp_path / kind).names()

    @pytest.mark.parametrize("kind", [0o120000, 0o020000, 0o060000, 0o010000, 0o140000])
    def test_links_devices_and_pipes_in_a_zip(self, kind, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            info = zipfile.ZipInfo("a.png")
            info.external_attr = (kind | 0o644) << 16
            archive.writestr(info, b"/etc/passwd")
        with pytest.raises(DataError, match="a link or a device"):
            open_container(tmp_path / "x.zip").names()

    def test_a_zip_that_says_it_is_large(self, tmp_path, monkeypatch):
        from textebm.data import image_files

        monkeypatch.setattr(image_files, "SMALLEST_LIMIT", 1 << 20)
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", bytes(4 << 20))
        with pytest.raises(DataError, match="more than 1,048,576 bytes, unpacked"):
            open_container(tmp_path / "x.zip").names()

    def test_a_zip_that_says_it_is_small(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", bytes(4 << 20))
        raw = (tmp_path / "x.zip").read_bytes().replace(struct.pack("<I", 4 << 20), struct.pack("<I", 64))
        (tmp_path / "x.zip").write_bytes(raw)
        files = open_container(tmp_path / "x.zip")
        with pytest.raises(DataError, match="damaged"):
            files.read("a.png")

    def test_a_zip_whose_packing_takes_what_memory_it_likes(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.png", b"x")
        with pytest.raises(DataError, match="packed in a way that is not read"):
            open_container(tmp_path / "x.zip").read("a.png")


class TestSizesThatAreOnlyClaimed:
    """A header of a few bytes may ask for any amount of memory; it gets what its file can fill."""

    def test_idx(self, tmp_path, peak_memory):
        (tmp_path / "x").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(50))
        with peak_memory(megabytes=64), pytest.raises(DataError, match="50 bytes of values"):
            read_idx(tmp_path / "x", 3)

    def test_a_bomb_in_idx(self, tmp_path, peak_memory, monkeypatch):
        from textebm.data import image_files

        monkeypatch.setattr(image_files, "SMALLEST_PACKED", 1 << 20)
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        raw = packer.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 10, 1 << 10, 1 << 8))
        for _ in range(256):
            raw += packer.compress(bytes(1 << 20))
        (tmp_path / "x.gz").write_bytes(raw + packer.flush())
        assert (tmp_path / "x.gz").stat().st_size < 300_000
        with peak_memory(megabytes=128), pytest.raises(DataError, match="bytes, unpacked"):
            read_idx(tmp_path / "x.gz", 3)

    @pytest.mark.parametrize("size", [(1 << 31) - 1, (1 << 32) - 1])
    def test_mat(self, size, tmp_path, peak_memory):
        header = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
        inner = (
            struct.pack("<IIII", 6, 8, 9, 0) + struct.pack("<II4i", 5, 16, 1 << 10, 1 << 10, 3, 1 << 10)
            + struct.pack("<II8s", 1, 1, b"X") + struct.pack("<II", 2, size)
        )  # fmt: skip
        plain = struct.pack("<II", 14, size) + inner
        packed = zlib.compress(plain)
        for raw in (plain, struct.pack("<II", 14, len(inner)) + inner, struct.pack("<II", 15, len(packed)) + packed):
            (tmp_path / "x.mat").write_bytes(header + raw)
            with peak_memory(megabytes=64), pytest.raises(DataError, match="cannot be read as a MATLAB 5 file"):
                read_mat(tmp_path / "x.mat")

    def test_xz(self, tmp_path, peak_memory):
        import lzma

        from textebm.lm_eval.corpus import read_sentences

        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
        raw = lzma.compress(b"a b\n", check=lzma.CHECK_NONE, filters=filters)
        at = raw.index(b"\x21\x01") + 2  # the size of the dictionary, in one byte: 40 is 4 GiB
        head = bytearray(raw[12 : 12 + 12])
        head[at - 12] = 40
        head[8:12] = struct.pack("<I", zlib.crc32(head[:8]))
        (tmp_path / "x.txt.xz").write_bytes(raw[:12] + bytes(head) + raw[24:])
        with peak_memory(megabytes=64), pytest.raises(DataError, match=r"Memory usage limit exceeded"):
            list(read_sentences(tmp_path / "x.txt.xz"))

    @pytest.mark.parametrize("shape", ["(1099511627776,)", "(1048576, 1048576, 3)", "(99999999999999999999,)", "(-1,)"])
    @pytest.mark.parametrize("ending", ["npy", "npz"])
    def test_arrays(self, shape, ending, tmp_path, peak_memory):
        from textebm.image_eval.images import open_images

        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
        raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(20)
        if ending == "npz":
            with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
                archive.writestr("arr_0.npy", raw)
        else:
            (tmp_path / "x.npy").write_bytes(raw)
        with peak_memory(megabytes=64), pytest.raises(DataError, match="cannot be read"):
            open_images(tmp_path / f"x.{ending}")

    @pytest.mark.parametrize("key", ["latent_dim", "width", "depth"])
    @pytest.mark.parametrize("size", [10**6, 10**9, 10**30])
    def test_the_size_of_a_model(self, key, size, saved_model, tmp_path, peak_memory):
        import json
        import shutil

        from textebm.model.latent_model import LatentModel

        folder = shutil.copytree(saved_model, tmp_path / "model")
        described = json.loads((folder / "config.json").read_text())
        described["prior"][key] = size
        (folder / "config.json").write_text(json.dumps(described))
        with peak_memory(megabytes=64), pytest.raises(TextebmError, match=r"config\.json"):
            LatentModel.from_pretrained(folder)

    @pytest.mark.parametrize("side", [9000, 60_000, (1 << 31) - 1])
    def test_a_picture(self, side, peak_memory):
        pytest.importorskip("PIL")

        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        raw = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        assert side * side > LARGEST_PIXELS
        with peak_memory(megabytes=64), pytest.raises(DataError, match=r"at most 64 million|cannot be decoded"):
            opened(Picture("x.png", raw))

    def test_aliases_of_aliases(self, tmp_path, peak_memory):
        from textebm.config import load_config

        lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        (tmp_path / "x.yaml").write_text("\n".join(lines))
        with peak_memory(megabytes=64), pytest.raises(TextebmError, match="alias"):
            load_config(str(tmp_path / "x.yaml"))
