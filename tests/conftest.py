"""What every test shares: one thread, no network, shapes checked at the borders of functions, real data, GPU skips."""

import atexit
import contextlib
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

# Before torch is imported, since it reads them once. Processes run side by side, so each takes one thread.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"


def separate_home() -> None:
    """Give the tests a home folder of their own, so that they neither find nor leave anything in the user's.

    A build of lmplz that is there is used, through a link. Worker processes share the first one's folder.
    """
    from textebm.home import VARIABLE, home

    if os.environ.get("TEXTEBM_TEST_HOME") is None:
        before, own = home(), Path(tempfile.mkdtemp(prefix="textebm-test-home-"))
        if (before / "kenlm").is_dir():
            (own / "kenlm").symlink_to((before / "kenlm").resolve())
        os.environ["TEXTEBM_TEST_HOME"] = os.environ[VARIABLE] = str(own)
        atexit.register(shutil.rmtree, own, ignore_errors=True)


separate_home()

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402


def check_shapes(package: str) -> None:
    """Check annotations such as Float[Tensor, "batch latent"] at every call: under the tests only, users do not pay."""
    from beartype import BeartypeConf, beartype

    checker = ModuleType("textebm_shape_checker")  # the import hook wants the name of something it can import
    checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float
    sys.modules[checker.__name__] = checker
    install_import_hook(package, f"{checker.__name__}.check")


if find_spec("beartype") is not None:  # absent in a slim environment: then the tests run without these checks
    check_shapes("textebm.model")

# A busy machine makes a step slow, not wrong.
settings.register_profile("textebm", deadline=None)
settings.load_profile("textebm")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then large ones: of files done side by side, the last to begin ends all."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    size = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -size[item.path], item.path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none here")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with local copies of the real corpora: TEXTEBM_DATA, else ../shared/data beside the checkout."""
    given = os.environ.get("TEXTEBM_DATA")
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {'TEXTEBM_DATA' if given else '../shared/data'} is not a folder")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """A source of random numbers on the CPU that starts the same in every test."""
    return torch.Generator().manual_seed(20260101)


class NoReadback(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses every operation whose result the host would have to wait for on a GPU."""

    WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "is_nonzero", "equal", "_unique", "unique_dim")

    def __torch_dispatch__(self, operation, _types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::").split(".")[0]
        assert name not in self.WAITING, f"{name} waits for the device"
        if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), f"{name} by a mask waits for the device"
        return operation(*args, **(kwargs or {}))


@pytest.fixture(scope="session")
def no_readback() -> type[NoReadback]:
    """The guard against waiting for the device, a context."""
    return NoReadback


@pytest.fixture
def peak_memory() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """Asserts that what is done within takes so much memory at most: what Python asks for, what the process holds."""
    import resource
    import tracemalloc

    @contextlib.contextmanager
    def within(megabytes: int) -> Iterator[None]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        try:
            yield
            asked = tracemalloc.get_traced_memory()[1] >> 20
        finally:
            tracemalloc.stop()
        held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        assert max(asked, held) <= megabytes, f"{asked} MB were asked for, and {held} MB held"

    return within


# ---- commands, and a run to try them on


def cpu_only() -> dict[str, str]:
    """The environment of a process that sees no GPU."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Lines of standard output."""
        return self.out.splitlines()


def run_command(*words: object, cwd: Path) -> Done:
    """`textebm WORDS` in this process, which spares the import of torch; an exception that escapes fails the test.

    It runs as on a machine without a GPU, so that figures do not depend on the machine; tests/gpu has the others.
    """
    from textebm.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as around:
        around.enter_context(contextlib.redirect_stdout(out))
        around.enter_context(contextlib.redirect_stderr(err))
        around.enter_context(contextlib.chdir(cwd))
        around.enter_context(mock.patch("torch.cuda.is_available", return_value=False))
        try:
            code = main([str(word) for word in words])
        except SystemExit as left:  # tyro leaves so, at a wrong option and after --help
            code = left.code if isinstance(left.code, int) else 1
    return Done(code, out.getvalue(), err.getvalue())


def process_words(*words: object) -> list[str]:
    """The command line of `textebm WORDS` as a process of its own, in which warnings are errors as they are here."""
    quiet = ["-W", "error", "-W", "ignore::DeprecationWarning", "-W", "ignore::PendingDeprecationWarning"]
    return [sys.executable, *quiet, "-m", "textebm", *map(str, words)]


def run_process(*words: object, cwd: Path, largest_file_kb: int | None = None) -> Done:
    """`textebm WORDS` as a process of its own.

    `largest_file_kb` limits what it can write to one file: a write beyond it fails as on a full disk.
    """
    command = process_words(*words)
    if largest_file_kb is not None:
        command = ["bash", "-c", f'ulimit -f {largest_file_kb}; exec "$@"', "limited", *command]
    done = subprocess.run(command, cwd=cwd, env=cpu_only(), capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """`textebm ...` in this process, run in the test's folder."""

    def run(*words: object, cwd: Path = tmp_path) -> Done:
        return run_command(*words, cwd=cwd)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """`textebm ...` as a process of its own, run in the test's folder."""

    def run(*words: object, cwd: Path = tmp_path, **limits: int) -> Done:
        return run_process(*words, cwd=cwd, **limits)

    return run


@pytest.fixture
def start_process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start `textebm ...` in the test's folder, with pipes to its output; the test stops it."""

    def start(*words: object) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(process_words(*words), cwd=tmp_path, env=cpu_only(), **pipes)

    return start


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, valid and test: short sentences of a small grammar."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    folder.mkdir()
    pick = random.Random(0).choice
    articles, adjectives = ["the", "a", "every", "no"], ["old", "small", "red", "quiet", "young", ""]
    nouns, verbs = ["dog", "king", "river", "child", "ship", "wolf"], ["sees", "finds", "follows", "loves", "fears"]
    slots = [articles, adjectives, nouns, verbs, articles, adjectives, nouns, ["today", "again", "at night", ""]]
    for split, count in {"train": 300, "valid": 60, "test": 60}.items():
        sentences = [" ".join(" ".join(map(pick, slots)).split()) for _ in range(count)]
        (folder / f"{split}.txt").write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_config(corpus_folder: Path) -> Path:
    """A configuration file that trains on that corpus in a second: 3 epochs of 10 steps."""
    path = corpus_folder.parent / "tiny.yaml"
    path.write_text(
        f"""\
data: {corpus_folder}
prior: {{latent_dim: 4, width: 16, steps: 5}}
generator: {{embedding_dim: 8, hidden_dim: 16}}
inference: {{steps: 4, step_size: 0.3}}
optimiser: {{lr: 0.02}}
evaluation: {{sentences: 40, active_unit_sentences: 8, active_unit_chains: 4, samples: 3}}
batch_size: 30
epochs: 3
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def trained_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run, trained by the real program. Read it, or copy it; never change it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run_process("train", "--config", tiny_config, "--run-dir", folder, cwd=folder.parent)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def trained_model(trained_run: Path) -> Path:
    """The model folder of that run's last checkpoint."""
    return trained_run / "checkpoints" / "step-30"


@pytest.fixture(scope="session")
def saved_model(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a small model of that corpus that nobody trained: z matters to it, and it is made at once."""
    import dataclasses
    import json

    from textebm.config import Config, GeneratorConfig, InferenceConfig, PriorConfig, to_dict
    from textebm.data.vocabulary import build_tokenizer, save_tokenizer
    from textebm.model.latent_model import LatentModel, ModelConfig

    folder = tmp_path_factory.mktemp("saved") / "model"
    parts = {
        "prior": PriorConfig(latent_dim=3, width=8, steps=5),
        "generator": GeneratorConfig(embedding_dim=6, hidden_dim=12, init_range=1.0),
        "inference": InferenceConfig(steps=6, step_size=0.3),
    }
    tokenizer = build_tokenizer((corpus_folder / "train.txt").read_text(encoding="utf-8").splitlines(), 100)
    LatentModel(ModelConfig(tokenizer.get_vocab_size(), longest=9, **parts), seed=2).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    config = to_dict(dataclasses.replace(Config(), data=str(corpus_folder), **parts))
    described = {"format": 2, "config": config, "progress": {}, "contents": {}}
    (folder / "run.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def draw_squares() -> Callable[..., None]:
    """Draws pictures of one bright square each, somewhere on a dark ground, 8 by 8 pixels, into a new folder."""
    import numpy as np

    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")

    def draw(folder: Path, count: int, seed: int, channels: int = 3) -> None:
        folder.mkdir(parents=True)
        source = np.random.default_rng(seed)
        for number in range(count):
            pixels = np.full((8, 8, channels), 20, np.uint8)
            top, left = source.integers(0, 5, 2)
            pixels[top : top + 4, left : left + 4] = source.integers(150, 256, channels)
            image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(folder / f"{number:03}.png")

    return draw


@pytest.fixture(scope="session")
def write_image_config() -> Callable[..., Path]:
    """Writes a configuration file, beside a folder of such pictures, that trains on them in seconds."""

    def write(pictures: Path, epochs: int) -> Path:
        path = pictures.parent / "tiny.yaml"
        path.write_text(
            f"""\
data: {pictures}
prior: {{latent_dim: 4, width: 16, steps: 5}}
generator: {{kind: convolutional, convolution: {{width: 4, start: 4, multiples: [2], sigma: 0.3, loss: squared-error}}}}
inference: {{steps: 4, step_size: 0.1}}
optimiser: {{lr: 0.02, betas: [0.5, 0.999]}}
evaluation: {{sentences: 10, active_unit_sentences: 6, active_unit_chains: 3, samples: 6}}
batch_size: 10
epochs: {epochs}
""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture(scope="session")
def tiny_pictures(draw_squares: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of such pictures with train, valid and test."""
    folder = tmp_path_factory.mktemp("pictures") / "squares"
    for seed, (split, count) in enumerate({"train": 30, "valid": 10, "test": 10}.items()):
        draw_squares(folder / split, count, seed)
    return folder


@pytest.fixture(scope="session")
def tiny_image_config(tiny_pictures: Path, write_image_config: Callable[..., Path]) -> Path:
    """A configuration file that trains on those pictures in a second: one epoch of 3 steps."""
    return write_image_config(tiny_pictures, epochs=1)


@pytest.fixture(scope="session")
def trained_image_run(tiny_image_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run on pictures. Read it, or copy it; never change it."""
    folder = tmp_path_factory.mktemp("trained-images") / "run"
    done = run_process("train", "--config", tiny_image_config, "--run-dir", folder, cwd=folder.parent)
    assert done.code == 0, done.err
    return folder


# ---- a real browser, for tests of pages


@dataclass
class Visit:
    """A page in the browser, and what was heard of it."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions of scripts."""
    requests: list[str] = field(default_factory=list)
    """Addresses that it asked for; data that stand in the page itself are none."""

    def overflows(self) -> bool:
        """Whether the page as a whole can be scrolled sideways."""
        wide: bool = self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        return wide


@dataclass
class Browser:
    """Opens pages."""

    program: Any

    @contextlib.contextmanager
    def visit(self, address: str, width: int = 1280, scheme: str = "light") -> Iterator[Visit]:
        """A page at a width in pixels, in a light or a dark scheme."""
        context = self.program.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        visit = Visit(context.new_page())
        visit.page.on("console", lambda said: said.type in ("error", "warning") and visit.complaints.append(said.text))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("request", lambda asked: asked.url.startswith("data:") or visit.requests.append(asked.url))
        visit.page.goto(address)
        try:
            yield visit
        finally:
            context.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, driven by Playwright: TEXTEBM_CHROMIUM names it, or it is on the PATH."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested by Playwright")
    names = filter(None, (os.environ.get("TEXTEBM_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"))
    program = next((found for name in names if (found := shutil.which(name)) is not None), None)
    if program is None:
        pytest.skip("there is no Chromium here: install one, or name it in TEXTEBM_CHROMIUM")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=options)
        yield Browser(chromium)
        chromium.close()
