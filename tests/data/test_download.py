"""Downloads from a server of our own: whole, broken off and resumed, wrong, refused, silent."""

import contextlib
import dataclasses
import hashlib
import lzma
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from textebm.data import download, registry
from textebm.data.download import Published
from textebm.data.registry import DATA_DIR_VARIABLE, SPLITS, Card, SplitCard, resolve
from textebm.errors import DataError

CONTENT = b"".join(b"sentence number %d\n" % index for index in range(40_000))
PIECE = download.PIECE
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ADVICE = "Where to get it: in the library."


@pytest.fixture(autouse=True)
def _own_home_and_the_network_allowed(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTEBM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "TEXTEBM_OFFLINE", DATA_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)


class Server:
    """An HTTP server on this machine that serves `content` and does what `faults` say, one fault a request, in turn."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.files: dict[str, bytes] = {}
        """What is served at other paths."""
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.asked: list[tuple[str, str | None]] = []
        """Path and Range of every request."""
        self.ranges = True
        self.stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, self.headers["Range"]))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    server.faults.pop(0)(self) if server.faults else server.send(self)

            def log_message(self, *ignored: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file.txt"

    def send(self, handler: BaseHTTPRequestHandler, bytes_of_it: int | None = None) -> None:
        """The content from where the request's range begins; all that is announced, or less."""
        content = self.files.get(handler.path, self.content)
        start, size = 0, len(content)
        if self.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")):
            start = int(wanted[1])
            if start >= size:
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{size}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(size - start))
        handler.end_headers()
        handler.wfile.write(content[start:][:bytes_of_it])

    def cut(self, bytes_of_it: int) -> Callable[[BaseHTTPRequestHandler], None]:
        return lambda handler: self.send(handler, bytes_of_it)

    def stall(self, bytes_of_it: int) -> Callable[[BaseHTTPRequestHandler], None]:
        def fault(handler: BaseHTTPRequestHandler) -> None:
            self.send(handler, bytes_of_it)
            handler.wfile.flush()
            self.stop.wait(30)

        return fault

    @staticmethod
    def answer(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
        def fault(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(code)
            for name, value in ({"Content-Length": "0"} | headers).items():
                handler.send_header(name, value)
            handler.end_headers()

        return fault

    @property
    def starts(self) -> list[int]:
        """Where each request wanted to begin."""
        return [int(wanted.split("=")[1].rstrip("-")) if wanted else 0 for _, wanted in self.asked]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop.set()
    running.http.shutdown()
    running.http.server_close()


def fetch(server: Server, sha256: str = SHA256) -> download.Fetched:
    return download.fetch("mine", {"it": Published("file.txt", server.url, sha256)}, ADVICE)["it"]


def kept(tmp_path: Path) -> dict[str, int]:
    """Names and sizes of what lies in the corpus's folder, but for the lock."""
    folder = tmp_path / "home" / "data" / "mine"
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != ".lock"}


class TestWhole:
    def test_comes_once_and_is_then_only_checked(self, server, tmp_path):
        first = fetch(server)
        assert first.downloaded
        assert first.path == tmp_path / "home" / "data" / "mine" / "file.txt"
        assert first.path.read_bytes() == CONTENT
        second = fetch(server)
        assert (second.path, second.downloaded) == (first.path, False)
        assert server.asked == [("/file.txt", None)]
        assert kept(tmp_path) == {"file.txt": len(CONTENT)}

    def test_a_copy_that_was_damaged_is_fetched_again(self, server):
        path = fetch(server).path
        path.write_bytes(b"something else")
        assert fetch(server).downloaded
        assert path.read_bytes() == CONTENT

    def test_redirects_are_followed(self, server):
        server.faults = [server.answer(302, Location="/elsewhere.txt")]
        assert fetch(server).path.read_bytes() == CONTENT
        assert [path for path, _ in server.asked] == ["/file.txt", "/elsewhere.txt"]

    def test_no_progress_bar_where_there_is_no_terminal(self, server, capfd):
        fetch(server)
        assert capfd.readouterr() == ("", "")

    def test_a_progress_bar_on_a_terminal(self, server, monkeypatch, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        fetch(server)
        assert re.search(r"file\.txt: 100%.*", capsys.readouterr().err)


class TestResume:
    def test_a_download_that_is_cut_goes_on_where_it_stopped(self, server, tmp_path):
        server.faults = [server.cut(10 * PIECE), server.cut(20 * PIECE)]
        assert fetch(server).path.read_bytes() == CONTENT
        assert server.starts == [0, 10 * PIECE, 30 * PIECE]
        assert kept(tmp_path) == {"file.txt": len(CONTENT)}

    def test_what_came_is_kept_for_the_next_call(self, server, tmp_path):
        server.faults = [server.cut(PIECE)] * download.ATTEMPTS
        with pytest.raises(DataError, match=rf"could not be downloaded from {server.url}: .*{ADVICE}"):
            fetch(server)
        assert list(kept(tmp_path).values()) == [PIECE * download.ATTEMPTS]
        assert fetch(server).path.read_bytes() == CONTENT
        assert server.starts == [0, PIECE, 2 * PIECE, 3 * PIECE]

    def test_attempts_end_where_nothing_more_comes(self, server):
        server.faults = [server.cut(PIECE), server.cut(0), server.cut(PIECE)]
        with pytest.raises(DataError, match="could not be downloaded"):
            fetch(server)
        assert server.starts == [0, PIECE]

    def test_a_server_without_ranges_starts_again(self, server):
        server.ranges = False
        server.faults = [server.cut(10 * PIECE)]
        assert fetch(server).path.read_bytes() == CONTENT
        assert server.starts == [0, 10 * PIECE]

    def test_a_download_that_broke_off_after_its_last_byte(self, server, tmp_path):
        part = tmp_path / "home" / "data" / "mine" / f".file.txt.{SHA256[:12]}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(CONTENT)
        assert fetch(server).path.read_bytes() == CONTENT
        assert server.starts == [len(CONTENT)]
        assert kept(tmp_path) == {"file.txt": len(CONTENT)}

    @pytest.mark.parametrize("left", [CONTENT + b"more", b"x" * len(CONTENT), b"x" * 1000])
    def test_a_rest_of_something_else_is_thrown_away(self, server, tmp_path, left):
        part = tmp_path / "home" / "data" / "mine" / f".file.txt.{SHA256[:12]}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(left)
        assert fetch(server).path.read_bytes() == CONTENT

    def test_a_part_of_another_version_is_not_gone_on_with(self, server):
        server.faults = [server.cut(PIECE)] * download.ATTEMPTS
        with pytest.raises(DataError):
            fetch(server)
        server.asked, server.content = [], b"the new version\n"
        assert fetch(server, hashlib.sha256(server.content).hexdigest()).path.read_bytes() == server.content
        assert server.starts == [0]


class TestFaults:
    def test_wrong_content_is_not_kept_and_both_sums_are_named(self, server, tmp_path):
        server.content = b"not what was published\n"
        with pytest.raises(DataError, match=ADVICE) as caught:
            fetch(server)
        assert SHA256 in str(caught.value)
        assert hashlib.sha256(server.content).hexdigest() in str(caught.value)
        assert kept(tmp_path) == {}
        assert len(server.asked) == 1

    def test_wrong_content_leaves_nothing_in_the_place_of_a_good_copy(self, server):
        path = fetch(server).path
        server.content = b"not what was published\n"
        assert fetch(server).path == path  # the good copy is not even asked about
        assert path.read_bytes() == CONTENT

    @pytest.mark.parametrize(("code", "said"), [(404, "404 Not Found"), (503, "503 Service Unavailable")])
    def test_a_server_that_refuses_is_asked_once(self, server, code, said, tmp_path):
        server.faults = [server.answer(code)] * 5
        with pytest.raises(DataError, match=rf"the server answers with {said}\. {ADVICE}"):
            fetch(server)
        assert len(server.asked) == 1
        assert kept(tmp_path) == {}

    def test_a_server_that_falls_silent_is_given_up(self, server, monkeypatch, tmp_path):
        monkeypatch.setattr(download, "READ_SECONDS", 0.3)
        server.faults = [server.stall(PIECE), server.stall(0)]
        start = time.perf_counter()
        with pytest.raises(DataError, match=r"silent for 0\.3 seconds; what came is kept"):
            fetch(server)
        assert time.perf_counter() - start < 5
        assert list(kept(tmp_path).values()) == [PIECE]
        assert fetch(server).path.read_bytes() == CONTENT

    def test_nobody_listens(self, tmp_path):
        with socket.socket() as closed:  # bound, and nobody listens
            closed.bind(("127.0.0.1", 0))
            file = Published("file.txt", f"http://127.0.0.1:{closed.getsockname()[1]}/file.txt", SHA256)
            start = time.perf_counter()
            with pytest.raises(DataError, match=rf"(?i)could not be downloaded from .*connection refused.*{ADVICE}"):
                download.fetch("mine", {"it": file}, ADVICE)
        assert time.perf_counter() - start < 3

    def test_a_name_that_nobody_knows(self):
        file = Published("file.txt", "http://no-such-host.invalid/file.txt", SHA256)
        with pytest.raises(DataError, match=rf"could not be downloaded from http://no-such-host.invalid.*{ADVICE}"):
            download.fetch("mine", {"it": file}, ADVICE)

    @pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TEXTEBM_OFFLINE"])
    def test_offline_asks_nobody(self, server, variable, monkeypatch):
        monkeypatch.setenv(variable, "1")
        with pytest.raises(DataError, match=rf"mine is not on this machine, and {variable} forbids .*{ADVICE}"):
            fetch(server)
        assert server.asked == []

    def test_another_process_that_holds_the_folder(self, server, tmp_path, monkeypatch):
        from filelock import FileLock

        monkeypatch.setattr(download, "LOCK_SECONDS", 0.1)
        folder = tmp_path / "home" / "data" / "mine"
        folder.mkdir(parents=True)
        with FileLock(folder / ".lock"), pytest.raises(DataError, match="another process has been downloading"):
            fetch(server)


FETCH = """
import sys
from textebm.data import download
file = download.Published("file.txt", sys.argv[1], sys.argv[2])
print(download.fetch("mine", {"it": file}, "")["it"].downloaded)
"""


def test_two_processes_do_not_harm_each_other(server, tmp_path):
    """Both end well, one has downloaded, and the file is whole."""
    command = [sys.executable, "-c", FETCH, server.url, SHA256]
    server.faults = [
        lambda handler: (time.sleep(1), server.send(handler))
    ]  # the first is under way when the second asks
    both = [subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["False", "True"]
    assert [process.returncode for process in both] == [0, 0]
    assert len(server.asked) == 1
    assert (tmp_path / "home" / "data" / "mine" / "file.txt").read_bytes() == CONTENT


def test_a_process_that_is_killed_leaves_what_the_next_goes_on_with(server, tmp_path):
    server.faults = [server.stall(100_000)]
    process = subprocess.Popen([sys.executable, "-c", FETCH, server.url, SHA256], env=os.environ)
    part = tmp_path / "home" / "data" / "mine" / f".file.txt.{SHA256[:12]}.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    there = part.stat().st_size
    assert 0 < there <= 100_000
    assert fetch(server).path.read_bytes() == CONTENT
    assert server.starts == [0, there]


# --- corpora with cards ---


def card_of(server: Server) -> Card:
    parts = {split: SplitCard((f"mine.{split}.txt",), SHA256, 40_000, 120_000) for split in SPLITS}
    address = server.url.removesuffix("file.txt")
    where = {split: f"{address}{split}.txt" for split in SPLITS}
    return Card("mine", "Mine", "", "free", "The library.", "", None, False, parts, where)


@pytest.fixture
def published(server, monkeypatch) -> Server:
    """A corpus named mine that the server publishes."""
    card = card_of(server)
    monkeypatch.setattr(registry, "card_names", lambda: ["mine"])
    monkeypatch.setattr(registry, "load_card", lambda name: card)
    return server


class TestCorpora:
    def test_come_when_they_are_first_wanted(self, published, tmp_path):
        corpus = resolve("mine")
        assert [path for path, _ in published.asked] == ["/train.txt", "/valid.txt", "/test.txt"]
        assert next(corpus.sentences("test")) == "sentence number 0"
        assert corpus.describe("test") == str(tmp_path / "home" / "data" / "mine" / "mine.test.txt")
        assert corpus.held_out == ()
        assert resolve("mine") == corpus
        assert len(published.asked) == 3

    def test_the_rest_comes_where_one_is_there(self, published):
        resolve("mine")
        registry.locate(card_of(published))["valid"].unlink()
        resolve("mine")
        assert [path for path, _ in published.asked][3:] == ["/valid.txt"]

    def test_what_was_downloaded_serves_offline(self, published, monkeypatch):
        resolve("mine")
        monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
        resolve("mine")

    def test_offline_says_where_to_get_it_by_hand_and_which_folder_to_name(self, published, monkeypatch):
        monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
        with pytest.raises(
            DataError,
            match=r"TEXTEBM_OFFLINE forbids.*Where to get it: The library\. Then put mine\.train\.txt, .*--data-dir",
        ):
            resolve("mine")

    @pytest.mark.parametrize("named_by", ["data_dir", "environment"])
    def test_a_named_folder_that_lacks_a_file_is_an_error_not_a_download(
        self, published, tmp_path, named_by, monkeypatch
    ):
        for split in ("train", "valid"):
            (tmp_path / f"mine.{split}.txt").write_text("one\n")
        if named_by == "environment":
            monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
        with pytest.raises(DataError, match=r"no mine\.test\.txt"):
            resolve("mine", str(tmp_path) if named_by == "data_dir" else None)
        assert published.asked == []

    def test_a_data_dir_without_it_is_an_error_too(self, published, tmp_path):
        with pytest.raises(DataError, match=r"no mine\.train\.txt, mine\.valid\.txt, mine\.test\.txt"):
            resolve("mine", str(tmp_path))

    def test_a_folder_of_other_corpora_in_the_environment_is_none(self, published, tmp_path, monkeypatch):
        monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
        resolve("mine")
        assert len(published.asked) == 3

    def test_a_local_copy_wins_over_a_download(self, published, tmp_path, monkeypatch):
        resolve("mine")
        for split in SPLITS:
            (tmp_path / f"mine.{split}.txt").write_text("local\n")
        monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
        assert list(resolve("mine").sentences("train")) == ["local"]


@pytest.mark.realdata
def test_the_real_ptb_comes_as_its_card_says(server, shared_data, monkeypatch, command):
    """The whole way with the real content and the real card; the server is ours, and breaks off once."""
    card = registry.load_card("ptb")
    for split, url in card.download.items():
        server.files[f"/{Path(url).name}"] = lzma.decompress((shared_data / "ptb" / f"ptb.{split}.txt.xz").read_bytes())
    ours = {split: server.url.replace("file.txt", Path(url).name) for split, url in card.download.items()}
    monkeypatch.setattr(registry, "load_card", lambda name: dataclasses.replace(card, download=ours))
    server.faults = [server.cut(100 * PIECE)]
    corpus = resolve("ptb")
    assert [split for split in SPLITS if corpus.train.digest() == card.splits[split].sha256] == ["train"]
    assert server.starts == [0, 100 * PIECE, 0, 0]
    monkeypatch.setenv("TEXTEBM_OFFLINE", "1")
    assert command("data", "check", "ptb").code == 0


def test_the_cards_that_ship_name_one_address_a_split():
    for name in registry.card_names():
        card = registry.load_card(name)
        assert set(card.download) in (set(), set(SPLITS))
        assert all(url.startswith("https://") for url in card.download.values())
    assert registry.load_card("ptb").download
