"""`textebm data` of sets of images: cards, counts, sums, faults, downloads."""

import gzip
import hashlib
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from textebm.data import download, image_cards
from textebm.data.image_cards import FileCard, image_card_names, load_image_card
from textebm.data.images import resolve_images
from textebm.data.registry import DATA_DIR_VARIABLE, SPLITS

pytest.importorskip("PIL")


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)


def test_the_list_says_what_there_is_and_where(command, write, tmp_path):
    write.mnist(tmp_path / "copies" / "mnist")
    done = command("data", "list", "--data-dir", "copies")
    assert "mnist      MNIST, handwritten digits: 55,000 / 5,000 / 10,000 images (train / valid / test)" in done.out
    assert f"here: {tmp_path / 'copies' / 'mnist'}" in done.out.replace("here: copies", f"here: {tmp_path / 'copies'}")
    found = {entry["name"]: entry for entry in json.loads(command("data", "list", "--format", "json").out)}
    assert (found["svhn"]["kind"], found["svhn"]["download"], found["svhn"]["found"]) == ("images", True, None)
    assert not found["celeba64"]["download"]
    assert found["demo"]["kind"] == "text"


@pytest.mark.parametrize("name", image_card_names())
def test_everything_on_the_card(name, command):
    card = load_image_card(name)
    out = command("data", "show", name).out
    for told in (card.title, card.licence, card.source, card.notes, card.description):
        assert told in out
    assert f"shape: {card.channels}×{card.size}×{card.size} (channels, height, width)" in out
    for split in SPLITS:
        assert f"{split}: {card.images[split]:,} images" in out
    assert card.folder in card.advice


@pytest.mark.parametrize("name", image_card_names())
def test_sums_and_addresses_have_their_form(name):
    for file in load_image_card(name).files.values():
        for digest in filter(None, (file.sha256, file.packed)):
            assert re.fullmatch(r"[0-9a-f]{64}", digest)
        assert file.url is None or re.match(r"https?://", file.url)


class TestFetch:
    def test_every_file_with_the_sum_of_what_is_sent(self, command, monkeypatch, tmp_path):
        asked = {}

        def pretend(corpus, files, advice):
            asked.update(files)
            return {key: download.Fetched(tmp_path / file.name, True) for key, file in files.items()}

        monkeypatch.setattr(download, "fetch", pretend)
        done = command("data", "fetch", "mnist")
        assert done.code == 0
        assert "downloaded, sum as published" in done.lines[0]
        images = load_image_card("mnist").files["train-images-idx3-ubyte"]
        published = asked["train-images-idx3-ubyte"]
        assert (published.name, published.sha256) == ("train-images-idx3-ubyte.gz", images.packed)

    def serve(self, folder, monkeypatch, request, **changed):
        """A server of the folder's packed files, and a card that names it as the place where MNIST is published."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request.addfinalizer(server.server_close)
        request.addfinalizer(server.shutdown)
        for name in ("HF_HUB_OFFLINE", "TEXTEBM_OFFLINE"):
            monkeypatch.delenv(name, raising=False)

        def card(path):
            raw = path.read_bytes()
            sums = [hashlib.sha256(content).hexdigest() for content in (gzip.decompress(raw), raw)]
            url = f"http://127.0.0.1:{server.server_address[1]}/{path.name}"
            return FileCard(sums[0], url, changed.get("packed", sums[1]))

        files = {name: card(folder / f"{name}.gz") for name in load_image_card("mnist").files}
        small = image_cards.ImageCard(**{**vars(load_image_card("mnist")), "files": files})
        for module in ("image_catalogue", "images"):
            monkeypatch.setattr(f"textebm.data.{module}.load_image_card", lambda name: small)

    def test_what_is_used_first_is_downloaded_checked_and_read(self, command, write, tmp_path, monkeypatch, request):
        pixels, _ = write.mnist(tmp_path / "published")
        self.serve(tmp_path / "published", monkeypatch, request)
        train = resolve_images("mnist", whole_train=True).encoded("train")
        assert np.array_equal(train.pixels[:, 0], pixels)
        assert "train-images-idx3-ubyte.gz" in {path.name for path in (tmp_path / "home" / "data" / "mnist").iterdir()}
        done = command("data", "fetch", "mnist")
        assert [line.split(",")[0].split(": ")[1] for line in done.lines[:4]] == ["was there"] * 4

    def test_another_content_than_was_published_is_refused(self, command, write, tmp_path, monkeypatch, request):
        write.mnist(tmp_path / "published")
        self.serve(tmp_path / "published", monkeypatch, request, packed="0" * 64)
        done = command("data", "fetch", "mnist")
        assert done.code == 2
        assert "sends something else than train-images-idx3-ubyte.gz as it was published" in done.err
        assert not list((tmp_path / "home" / "data" / "mnist").glob("*.gz"))

    def test_what_is_at_no_address_says_where_to_get_it(self, command):
        done = command("data", "fetch", "celeba64")
        assert done.code == 2
        assert "there is no address to download it from. Where to get it: Liu" in done.err

    def test_offline(self, command):
        done = command("data", "fetch", "svhn")
        assert done.code == 2
        assert "HF_HUB_OFFLINE forbids to download it. Where to get it: Netzer" in done.err


class TestCheck:
    def test_counts_and_sums(self, command, write, tmp_path, monkeypatch):
        """Of a card that fits a small copy all is well; of one whose sum is another that file is named."""
        write.mnist(tmp_path / "copies")
        card = load_image_card("mnist")
        sums = {
            name: hashlib.sha256(gzip.decompress((tmp_path / "copies" / f"{name}.gz").read_bytes())).hexdigest()
            for name in card.files
        }
        counts = {"train": 20, "valid": 20, "test": 12}
        self.small_card(monkeypatch, card, counts, sums)
        done = command("data", "check", "mnist", "--data-dir", "copies")
        assert done.code == 0, done.out
        assert [line.split(",")[0] for line in done.lines[:3]] == ["train: ok", "valid: ok", "test: ok"]
        assert sum(line.endswith("ok, sum as published") for line in done.lines) == 4
        self.small_card(monkeypatch, card, counts | {"test": 13}, sums | {"t10k-images-idx3-ubyte": "0" * 64})
        done = command("data", "check", "mnist", "--data-dir", "copies")
        assert done.code == 1
        assert "test: differs, 12 images" in done.out
        assert "images is 12, and the card says 13" in done.out
        assert f"sha256 is {sums['t10k-images-idx3-ubyte']}, and the card says {'0' * 64}" in done.out

    @staticmethod
    def small_card(monkeypatch, card, counts, sums):
        fields = {**vars(card), "images": counts, "files": {name: FileCard(digest) for name, digest in sums.items()}}
        small = image_cards.ImageCard(**fields)
        for module in ("image_catalogue", "images"):
            monkeypatch.setattr(f"textebm.data.{module}.load_image_card", lambda name: small)

    def test_another_form_than_the_published_one_is_said(self, command, write, tmp_path):
        write.cifar(tmp_path / "copies" / "cifar-10-batches-py")
        done = command("data", "check", "cifar10", "--data-dir", "copies")
        assert "warning: cifar-10-python.tar.gz: no such file here" in done.err
        assert done.code == 1  # a small copy

    def test_a_damaged_file(self, command, write, tmp_path):
        write.mnist(tmp_path / "copies")
        path = tmp_path / "copies" / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:-30])
        done = command("data", "check", "mnist", "--data-dir", "copies")
        assert done.code == 1
        assert "test: unreadable" in done.out
        assert "damaged or cut short" in done.out

    def test_no_copy(self, command):
        done = command("data", "check", "svhn")
        assert done.code == 2
        assert "there is no copy on this machine to check. Where to get it: Netzer" in done.err


class TestOwnPictures:
    @pytest.fixture
    def folder(self, write, tmp_path):
        members = {
            f"{split}/{kind}/{n}.png": write.png(write.pixels(1, 8, seed=n)[0])
            for split in SPLITS
            for kind in ("cat", "dog")
            for n in range(3)
        }
        return write.spread(tmp_path / "pets", members | {"train/cat/3.png": members["train/cat/0.png"][:90]})

    def test_show(self, folder, command):
        (folder / "train/cat/3.png").unlink()
        done = command("data", "show", "pets")
        assert done.code == 0, done.err
        assert "shape: 3×8×8 (channels, height, width)\nclasses: cat, dog\n" in done.out
        assert "train: 6 images, 2 classes, in pets (train)" in done.out
        found = json.loads(command("data", "show", "pets", "--format", "json").out)
        assert found["splits"]["test"]["labels"] == {"cat": 3, "dog": 3}
        assert len(found["splits"]["test"]["digest"]) == 64

    def test_check_names_the_bad_one(self, folder, command):
        done = command("data", "check", "pets")
        assert done.code == 1
        assert "train: unreadable" in done.out
        assert "pets, train/cat/3.png: cannot be decoded" in done.out

    def test_check_may_leave_it_out(self, folder, command):
        done = command("data", "check", "pets", "--images.skip-bad", "True")
        assert done.code == 0
        assert "train: ok, 6 images, 2 classes, 1 left out as unreadable, in pets (train)" in done.out
        assert "pets, train/cat/3.png: cannot be decoded" in done.out

    def test_another_size(self, folder, command):
        found = json.loads(
            command("data", "check", "pets", "--images.skip-bad", "True", "--images.size", 4, "--format", "json").out
        )
        assert found["ok"]
        done = command("data", "show", "pets", "--images.size", 0)
        assert done.code == 2
        assert "images of 0 pixels a side" in done.err


@pytest.mark.realdata
def test_the_real_mnist_is_as_published(command, shared_data):
    done = command("data", "check", "mnist", "--data-dir", shared_data)
    assert done.code == 0, done.out
    assert done.out.count("ok, sum as published") == 4
