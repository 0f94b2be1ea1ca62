"""What is fuzzed: one function for each reader of the program, and small valid files to begin from.

A target is given any bytes and a folder of its own. It puts the bytes where the program would find them, and reads them
as the program does. It may end in an error of `textebm.errors`, which a command tells in a line; anything else that it
raises is a fault. `tests/test_fuzz.py` replays the standing corpus through the same table.
"""

import dataclasses
import functools
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from textebm.errors import TextebmError

Read = Callable[[bytes, Path], object]
Seeds = Callable[[], list[bytes]]


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        read: called with the bytes of an input and a folder that holds what an earlier call left there.
        seeds: valid files, which are read without an error.
        longest: bytes of the longest input that the fuzzer tries.
        is_slow: whether a fourth of the inputs must do.
    """

    read: Read
    seeds: Seeds
    longest: int = 4096
    is_slow: bool = False


TARGETS: dict[str, Target] = {}


def target(name: str, seeds: Seeds, longest: int = 4096, *, is_slow: bool = False) -> Callable[[Read], Read]:
    """Put a function into the table."""

    def put(read: Read) -> Read:
        TARGETS[name] = Target(read, seeds, longest, is_slow)
        return read

    return put


class OutOfMemoryError(Exception):
    """A reader asked for more memory than it may have."""


def accepts(name: str, data: bytes, folder: Path) -> bool:
    """Whether a target reads an input, and does not refuse it with an error of ours.

    Raises:
        OutOfMemoryError: it was refused because memory ran out, which a limit must prevent.
        Exception: the fault that the input has found.
    """
    try:
        TARGETS[name].read(data, folder)
    except TextebmError as error:
        cause: BaseException | None = error
        while cause is not None:  # `raise ... from None` hides what was caught, and does not forget it
            if isinstance(cause, MemoryError):
                raise OutOfMemoryError(f"{name}: out of memory") from error
            cause = cause.__context__
        if not str(error):
            raise AssertionError("an error without a message") from error
        return False
    return True


def _put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """A folder within the target's own, made at the first call."""
    path = folder / name
    if not path.is_dir():
        path.mkdir()
        make(path)
    return path


# ---- text

TEXT = "the old dog sleeps\na ship \u00e9t\u00e9 \u6f22\u5b57 <unk>\n\n  two   blanks\n".encode()
JSON_LINES = b'{"text": "the old dog", "n": 1}\n\n{"text": "\\u00e9t\\u00e9 \\ud83d\\ude00"}\n{"text": ""}\n'


def _read_text(path: Path) -> None:
    from textebm.data.sources import TextFiles
    from textebm.lm_eval.corpus import Corpus, Vocabulary

    source = TextFiles((path,))
    source.digest()
    list(source.sentences())
    corpus = Corpus(path, keep_blank=True)
    vocabulary = Vocabulary.from_sentences(corpus)
    for sentence in corpus:
        vocabulary.map(sentence.split())
    corpus.require_words()


@target("text", lambda: [TEXT, b"\xef\xbb\xbfa b\r\nc\r\n"])
def text(data: bytes, folder: Path) -> None:
    """A text corpus, or a file of samples."""
    _read_text(_put(folder, "corpus.txt", data))


@target("text-gz", lambda: [gzip.compress(TEXT, mtime=0)])
def text_gz(data: bytes, folder: Path) -> None:
    """One packed by gzip."""
    _read_text(_put(folder, "corpus.txt.gz", data))


@target("text-xz", lambda: [lzma.compress(TEXT)])
def text_xz(data: bytes, folder: Path) -> None:
    """One packed by xz."""
    _read_text(_put(folder, "corpus.txt.xz", data))


@target("json-lines", lambda: [JSON_LINES])
def json_lines(data: bytes, folder: Path) -> None:
    """JSON lines, as a corpus and as samples."""
    _read_text(_put(folder, "corpus.jsonl", data))


def _tokenizers() -> list[bytes]:
    from textebm.data.vocabulary import build_tokenizer

    words = build_tokenizer(["the old dog", "a ship"], 20, lowercase=True, numbers="N")
    pairs = build_tokenizer(["the old dog", "a ship"], 264, "bpe")
    return [words.to_str().encode(), pairs.to_str().encode()]


@target("tokenizer", _tokenizers, 16384)
def tokenizer(data: bytes, folder: Path) -> None:
    """A vocabulary, as it lies in a model folder; and a sentence there and back."""
    from textebm.data.text import encode
    from textebm.data.vocabulary import decode, load_tokenizer

    _put(folder, "tokenizer.json", data)
    loaded = load_tokenizer(folder)
    encode(["the old dog sees 12 ships", "\u00e9t\u00e9"], loaded)
    decode(loaded, range(min(loaded.get_vocab_size(), 300)))


# ---- configurations


def _configs() -> list[bytes]:
    from textebm.config import Config, to_dict

    short = (
        b"data: demo\nprior: {latent_dim: 4, steps: 5, step_size: [0.3, 1e-1]}\n# words\nepochs: 3\nlowercase: true\n"
    )
    return [short, json.dumps(to_dict(Config()), indent=1).encode(), b"generator:\n  cell: gru\n  z_to_state: yes\n"]


@target("config", _configs, is_slow=True)
def config(data: bytes, folder: Path) -> None:
    """What --config names: YAML, or a run's JSON."""
    from textebm.config import flat, load_config

    flat(load_config(str(_put(folder, "mine.yaml", data)), "vae" if b"epochs" in data else None))


# ---- run folders

SENTENCES = ["the dog sees the cat", "a cat sleeps", "the old dog sleeps again"]


@functools.cache
def _tiny() -> Any:  # noqa: ANN401
    """A small model's material, itself and its learner, which has made a step.

    All numbers are then set to one value: what a step computes differs in its last digits from processor to
    processor, and a run's checksums with it.
    """
    import torch

    from textebm.config import Config, GeneratorConfig, InferenceConfig, OptimiserConfig, PriorConfig
    from textebm.data.text import encode
    from textebm.data.vocabulary import build_tokenizer
    from textebm.materials.text import Splits, TextMaterial
    from textebm.model.latent_model import LatentModel, ModelConfig
    from textebm.model.learner import Learner

    settings = Config(
        prior=PriorConfig(latent_dim=2, width=3, depth=1, steps=2),
        generator=GeneratorConfig(embedding_dim=2, hidden_dim=2),
        inference=InferenceConfig(steps=2, step_size=0.1),
        optimiser=OptimiserConfig(ema=0.5),
    )
    words = build_tokenizer(SENTENCES, 100)
    encoded = encode(SENTENCES, words)
    model = LatentModel(ModelConfig(words.get_vocab_size(), settings.prior, settings.generator, settings.inference))
    learner = Learner(model, settings, steps_per_epoch=1)
    learner.step(encoded.batch([0, 1, 2]), 0)
    moments = (kept for of in learner.optimisers().values() for state in of.state.values() for kept in state.values())
    for tensor in (*model.state_dict().values(), *moments):
        tensor.fill_(0.25)
    learner.restore({name: torch.full_like(tensor, 0.25) for name, tensor in learner.state().items()})
    return settings, TextMaterial(settings, Splits(words, encoded, encoded, encoded)), model, learner


def _save_run(run: Path) -> None:
    """A run folder with one checkpoint, as training writes it."""
    from textebm import checkpoint
    from textebm.config import to_dict

    settings, material, model, learner = _tiny()
    contents = dict.fromkeys(("train", "valid", "test"), "0")
    checkpoint.save(run, model, material, learner, settings, checkpoint.Progress(1, 1), True, contents)
    (run / "config.json").write_text(json.dumps(to_dict(settings)), encoding="utf-8")


def _checkpoint(folder: Path) -> Path:
    return _once(folder, "run", _save_run) / "checkpoints" / "step-1"


def _saved(name: str) -> Seeds:
    """What training writes under this name."""

    def seeds() -> list[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            return [(_checkpoint(Path(place)) / name).read_bytes()]

    return seeds


@target("model-config", _saved("config.json"))
def model_config(data: bytes, folder: Path) -> None:
    """What a model is, beside its weights."""
    from textebm.model.latent_model import LatentModel

    _put(_checkpoint(folder), "config.json", data)
    LatentModel.from_pretrained(_checkpoint(folder))


@target("weights", _saved("model.safetensors"), is_slow=True)
def weights(data: bytes, folder: Path) -> None:
    """The weights of a model."""
    from textebm.model.latent_model import LatentModel

    _put(_checkpoint(folder), "model.safetensors", data)
    LatentModel.from_pretrained(_checkpoint(folder))


@target("run-json", _saved("run.json"), 8192)
def run_json(data: bytes, folder: Path) -> None:
    """How far a run has come, and by what its files are known whole; and the same without the checksums."""
    from textebm import checkpoint

    step = _checkpoint(folder)
    _put(step, "run.json", data)
    try:
        checkpoint.verify(step)
        checkpoint.newest_whole(step.parent.parent)
        checkpoint.verify_model(step)
    except TextebmError:  # a changed byte is noticed, so what lies behind the checksums is read without them
        checkpoint.read_run(step)
        checkpoint.read_contents(step)
        raise
    checkpoint.read_run(step)
    checkpoint.read_contents(step)


@target("optimiser", _saved("optimiser.safetensors"), 8192, is_slow=True)
def optimiser(data: bytes, folder: Path) -> None:
    """The optimisers' state."""
    from textebm import checkpoint
    from textebm.model.learner import Learner

    settings, _, model, _ = _tiny()
    _put(_checkpoint(folder), checkpoint.OPTIMISER, data)
    checkpoint.restore_optimisers(_checkpoint(folder), Learner(model, settings, steps_per_epoch=1))


@target("learner", _saved("learner.safetensors"), is_slow=True)
def learner_state(data: bytes, folder: Path) -> None:
    """What else a learner keeps: here an average of the weights."""
    from textebm import checkpoint
    from textebm.model.learner import Learner

    settings, _, model, _ = _tiny()
    _put(_checkpoint(folder), checkpoint.LEARNER, data)
    checkpoint.restore_learner(_checkpoint(folder), Learner(model, settings, steps_per_epoch=1))


@target("pointer", lambda: [b'{"folder": "step-1"}\n'], 256)
def pointer(data: bytes, folder: Path) -> None:
    """last.json and best.json."""
    from textebm import checkpoint

    step = _checkpoint(folder)
    for name in ("last", "best"):
        _put(step.parent, f"{name}.json", data)
    checkpoint.newest_whole(step.parent.parent)
    found, _ = checkpoint.find_model(str(step.parent.parent))
    if found.resolve() != step.resolve():
        raise AssertionError(f"the pointer leads to {found}")


def _chains() -> list[bytes]:
    raw = io.BytesIO()
    np.save(raw, np.zeros((3, 2), "<f4"))
    return [raw.getvalue()]


@target("chains", _chains, 512)
def chains(data: bytes, folder: Path) -> None:
    """Where persistent chains stood."""
    from textebm.chains import FILE, ChainMemory

    checkpoint = _once(folder, "checkpoint", lambda _: None)
    _put(checkpoint, FILE, data)
    ChainMemory.restore(checkpoint, folder, 3, 2)


LOG = (
    b'{"kind": "start", "step": 0, "epoch": 0.0, "seconds": 0.1, "device": "cpu"}\n'
    b'{"kind": "train", "step": 20, "epoch": 1.0, "seconds": 1.5, "log_prob": -31.5, "prior_energy": 0.5}\n'
    b'{"kind": "valid", "step": 20, "epoch": 1.0, "seconds": 2.5, "reconstruction_perplexity": 9.5, "best": true}\n'
)


@target("log", lambda: [LOG])
def log(data: bytes, folder: Path) -> None:
    """A run's log: cut back when the run goes on, and drawn."""
    from textebm import checkpoint, plots

    plots.write_numbers(_put(folder, "log.jsonl", data).parent, folder / "numbers.csv")
    checkpoint.truncate_log(folder / "log.jsonl", 20)


@target("log-resumed", lambda: [LOG])
def log_resumed(data: bytes, folder: Path) -> None:
    """A run's log, whatever is in it, never keeps the run from going on."""
    from textebm import checkpoint

    checkpoint.truncate_log(_put(folder, "log.jsonl", data), 20)
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)


# ---- images


def _idx(array: "np.ndarray[Any, Any]") -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IDX = _idx(np.arange(18, dtype=np.uint8).reshape(2, 3, 3))


@target("idx", lambda: [IDX], 512)
def idx(data: bytes, folder: Path) -> None:
    """MNIST's images."""
    from textebm.data.image_formats import read_idx_images

    read_idx_images(_put(folder, "images-idx3-ubyte", data), _put(folder, "labels", _idx(np.zeros(2, np.uint8))))


@target("idx-gz", lambda: [gzip.compress(IDX, mtime=0)], 512)
def idx_gz(data: bytes, folder: Path) -> None:
    """MNIST's images, packed."""
    from textebm.data.image_files import unpacked_digest
    from textebm.data.image_formats import read_idx

    path = _put(folder, "images-idx3-ubyte.gz", data)
    unpacked_digest(path)
    read_idx(path, 3)


def _mats() -> list[bytes]:
    from scipy.io import savemat

    found = []
    for packed in (False, True):
        raw = io.BytesIO()
        savemat(raw, {"X": np.zeros((2, 2, 3, 2), np.uint8), "y": np.array([[1.0], [10.0]])}, do_compression=packed)
        found.append(raw.getvalue())
    return found


@target("mat", _mats)
def mat(data: bytes, folder: Path) -> None:
    """SVHN's images and labels."""
    from textebm.data.image_formats import read_mat

    read_mat(_put(folder, "train_32x32.mat", data))


def _batches() -> list[bytes]:
    rows = np.zeros((1, 3072), np.uint8)
    pickled = [pickle.dumps({b"labels": [3], b"data": rows}, protocol) for protocol in (2, 4, 5)]
    python2 = (
        b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b"
        b"\x87Rq\x04(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + bytes(3072) + b"tbU\x06labels](K\x03eu."
    )
    return [*pickled, python2]


@target("cifar", _batches)
def cifar(data: bytes, folder: Path) -> None:
    """One of CIFAR-10's batches, a pickle."""
    from textebm.data.image_formats import read_cifar_batch

    read_cifar_batch(data, "data_batch_1")


@functools.cache
def _png() -> bytes:
    return _picture("PNG", "RGB")


def _picture(kind: str, mode: str, **options: object) -> bytes:
    from PIL import Image

    raw = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(mode).save(raw, kind, **options)
    return raw.getvalue()


def _tars() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=form) as archive:
            for name in ("a/1.png", "b/\u00e9 2.png" + "x" * 120 * (form != tarfile.USTAR_FORMAT)):
                member = tarfile.TarInfo(name)
                member.size = len(_png())
                archive.addfile(member, io.BytesIO(_png()))
        found.append(raw.getvalue().rstrip(b"\0") + bytes(2048))
    return found


def _read_archive(path: Path) -> None:
    """The archive as --data, and as --samples of fid."""
    from textebm.data.image_decoding import Fitting
    from textebm.data.image_files import open_container
    from textebm.data.image_layouts import folder_sources
    from textebm.image_eval.images import open_images
    from textebm.model.image_batch import ImageShape

    source = folder_sources(open_container(path))["train"]
    source.digest()
    pictures = source.read()
    for row in range(len(pictures)):
        Fitting(ImageShape(3, 4, 4)).fit(pictures.picture(row))
    images = open_images(path)
    for _ in images.batches(np.arange(len(images))):
        pass


@target("tar", _tars, 16384)
def tar(data: bytes, folder: Path) -> None:
    """A tar archive of pictures."""
    _read_archive(_put(folder, "x.tar", data))


@target("tar-gz", lambda: [gzip.compress(raw, mtime=0) for raw in _tars()])
def tar_gz(data: bytes, folder: Path) -> None:
    """One packed by gzip."""
    _read_archive(_put(folder, "x.tar.gz", data))


def _zips() -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w", method) as archive:
            for name in ("a/1.png", "b/\u00e9 2.png"):
                archive.writestr(zipfile.ZipInfo(name), _png(), method)
        found.append(raw.getvalue())
    return found


@target("zip", _zips)
def zip_archive(data: bytes, folder: Path) -> None:
    """A zip archive of pictures."""
    _read_archive(_put(folder, "x.zip", data))


def _pictures() -> list[bytes]:
    modes = {"PNG": ("RGB", "L", "P", "RGBA", "I;16", "1"), "JPEG": ("RGB", "L"), "TIFF": ("RGB", "F"), "PPM": ("L",)}
    found = [_picture(kind, mode) for kind, several in modes.items() for mode in several if mode != "F"]
    return [*found, *(_picture(kind, "RGB") for kind in ("BMP", "GIF", "WEBP")), _picture("PNG", "RGB", optimize=True)]


@target("picture", _pictures, 2048)
def picture(data: bytes, folder: Path) -> None:
    """A picture, decoded, cropped and resized, for training; in grey; and as it is, for its features."""
    from textebm.data.image_decoding import Fitting, Picture
    from textebm.model.image_batch import ImageShape

    for shape in (ImageShape(3, 4, 4), ImageShape(1, 8, 8)):
        Fitting(shape).fit(Picture("x.png", data))


@target("partition", lambda: [b"000001.jpg 0\n000002.jpg 1\n\n000003.jpg 2\n"], 512)
def partition(data: bytes, folder: Path) -> None:
    """CelebA's list of splits."""
    from textebm.data.image_layouts import read_partition

    read_partition(_put(folder, "list_eval_partition.txt", data))


def _arrays() -> list[bytes]:
    images, plain, packed = np.zeros((2, 4, 4, 3), np.uint8), io.BytesIO(), io.BytesIO()
    np.save(plain, images)
    np.savez_compressed(packed, images)
    return [plain.getvalue(), packed.getvalue()]


@target("image-array", _arrays, 1024)
def image_array(data: bytes, folder: Path) -> None:
    """Images in a .npy or .npz file, as --samples of fid."""
    from textebm.image_eval.images import open_images

    images = open_images(_put(folder, "x.npz" if data.startswith(b"PK") else "x.npy", data))
    for _ in images.batches(np.arange(min(len(images), 8))):
        pass


def _torch_weights() -> list[bytes]:
    raw = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int64)}, raw)
    return [raw.getvalue()]


@target("torch-weights", _torch_weights)
def torch_weights(data: bytes, folder: Path) -> None:
    """A file of tensors that torch saved, as Inception's weights are published."""
    from textebm.image_eval.weights import PublishedWeights, read

    read(_put(folder, "x.pth", data), PublishedWeights("x", "x.pth", "", "0" * 64, ""))


# ---- scores and judges

SIGNATURE = (
    "metric:fppl|data:ptb|train:0123456789ab|n:1000|decoding:sample-t1|judge:kenlm5|order:5|eos:counted|"
    "interval:bootstrap-1000|seed:0|version:0.1.0"
)


@target("signature", lambda: [SIGNATURE.encode(), b"metric:rppl|note:a%7Cb%25%0A"], 512)
def signature(data: bytes, folder: Path) -> None:
    """A signature, which is read as it was written."""
    from textebm.errors import UsageError
    from textebm.lm_eval.compare import explanation, verdict
    from textebm.lm_eval.signature import Signature

    try:
        written = data.decode()
    except UnicodeDecodeError as error:  # the command line gives text
        raise UsageError("no text") from error
    read = Signature.parse(written)
    explanation(read)
    verdict(read, Signature.parse(SIGNATURE))
    if Signature.parse(str(read)) != read:
        raise AssertionError(f"{read!s} is not read as it was written")


def _arpas() -> list[bytes]:
    import tempfile

    from textebm.lm_eval.kneser_ney import estimate

    model, _ = estimate([sentence.split() for sentence in SENTENCES], 3, 12)
    with tempfile.TemporaryDirectory() as place:
        model.write(Path(place) / "x.arpa")
        return [(Path(place) / "x.arpa").read_bytes()]


@target("arpa", _arpas)
def arpa(data: bytes, folder: Path) -> None:
    """An n-gram model; and a sentence under it."""
    from textebm.lm_eval.arpa import BOS, EOS, UNK, NgramModel

    model = NgramModel.read(_put(folder, "x.arpa", data))
    model.token_log10_probs(np.array([BOS, UNK, min(4, len(model.words) - 1), EOS]))


def _results() -> list[bytes]:
    score = {"metric": "fppl", "score": 51.25, "interval": [50.0, 52.5], "signature": SIGNATURE}
    other = {**score, "metric": "rppl", "signature": SIGNATURE.replace("fppl", "rppl") + "|test:ba9876543210"}
    full = {**score, "details": {"headline": True, "real_row": {"perplexity": 40.5}}}
    run = {"name": "a-0", "preset": "ptb", "method": "lebm", "seed": 0, "scores": [full, other], "test": {"nll": 9.5}}
    return [json.dumps(value).encode() for value in (score, [full, other], run)]


@target("results", _results, is_slow=True)
def results(data: bytes, folder: Path) -> None:
    """Results that compare reads, beside a valid one; as scores, and as runs of an experiment."""
    from textebm.comparison.text import Systems, read_run
    from textebm.lm_eval.compare import compare_files

    mine, valid = _put(folder, "mine.json", data), _put(folder, "valid.json", _results()[1])
    found = compare_files([mine, valid], published=True)
    for form in ("text", "json", "csv", "markdown"):
        found.render(form)
    if b'"preset"' not in data:
        return
    runs = [read_run(mine), read_run(_put(folder, "other.json", _results()[2].replace(b"a-0", b"b-0")))]
    systems = Systems(runs, against=[runs[1].method], published=True)
    for form in ("text", "json", "csv", "markdown"):
        systems.render(form)


def _image_results() -> list[bytes]:
    from textebm.comparison.images import METRICS

    scores = {metric: {"score": 9.5, "signature": f"metric:{metric}|data:mnist|n:100|real-n:50"} for metric in METRICS}
    return [json.dumps({"name": "a-0", "preset": "mnist", "method": "lebm", "seed": 0, **scores}).encode()]


@target("image-results", _image_results, 2048)
def image_results(data: bytes, folder: Path) -> None:
    """Results on images."""
    from textebm.comparison.images import ImageSystems, is_image_run, read_image_run

    path = _put(folder, "mine.json", data)
    is_image_run(path)
    run, other = read_image_run(path), read_image_run(_put(folder, "valid.json", _image_results()[0]))
    systems = ImageSystems([run, dataclasses.replace(other, name="other", method="other")], against=[run.method])
    for form in ("text", "json", "csv", "markdown"):
        systems.render(form)


def _kept_scores() -> list[bytes]:
    import tempfile

    from textebm.lm_eval.kept import keep_scores
    from textebm.lm_eval.perplexity import SentenceScores
    from textebm.lm_eval.signature import Signature

    scores = SentenceScores(np.array([-1.5, -2.0]), np.array([3, 4]))
    with tempfile.TemporaryDirectory() as place:
        keep_scores(Path(place) / "x.npz", Signature.parse(SIGNATURE), [scores])
        return [(Path(place) / "x.npz").read_bytes()]


@target("kept-scores", _kept_scores, 2048)
def kept_scores(data: bytes, folder: Path) -> None:
    """Scores of sentences that were kept."""
    from textebm.lm_eval import kept

    found = kept.kept_scores(_put(folder, "x.npz", data))
    if not np.isfinite(found.score):
        raise AssertionError(f"a score of {found.score}")


def _judges() -> list[bytes]:
    import tempfile

    from textebm.lm_eval.judge_store import DESCRIPTION, JudgeStore

    with tempfile.TemporaryDirectory() as place:
        JudgeStore(Path(place)).save({"epochs": 3}, {"network": {"a": torch.zeros(2)}})
        return [(Path(place) / DESCRIPTION).read_bytes()]


@target("judge", _judges, 1024)
def judge(data: bytes, folder: Path) -> None:
    """What is kept of a trained judge: damage is told apart, so that it is trained again."""
    from textebm.errors import JudgeError
    from textebm.lm_eval.judge_store import DESCRIPTION, DamagedJudgeError, JudgeStore

    store = JudgeStore(folder / "judge")
    store.save({"epochs": 3}, {"network": {"a": torch.zeros(2)}})
    _put(folder / "judge", DESCRIPTION, data)
    try:
        store.load()
    except DamagedJudgeError as error:
        raise JudgeError(str(error)) from error


# ---- caches


def _features() -> list[bytes]:
    import tempfile

    from textebm.image_eval.store import _write

    with tempfile.TemporaryDirectory() as place:
        _write(np.zeros((2, 3), np.float32), Path(place) / "x.safetensors")
        return [(Path(place) / "x.safetensors").read_bytes()]


@target("features", _features, 1024)
def features(data: bytes, folder: Path) -> None:
    """Features of images that were kept: what is damaged is computed anew."""
    from textebm.errors import DataError
    from textebm.image_eval.store import _read

    if _read(_put(folder, "x.safetensors", data)) is None:
        raise DataError("damaged")


def _encoded(folder: Path) -> Path:
    from textebm.data.cache import _encode
    from textebm.data.registry import Corpus
    from textebm.data.sources import TextFiles
    from textebm.data.text import EncodingOptions

    _put(folder, "train.txt", TEXT)
    corpus = Corpus("train", TextFiles((folder / "train.txt",)), None, None)
    tokens = _tiny()[1].splits.tokenizer
    _encode(corpus, "train", tokens, EncodingOptions(), folder / "x.json", None)
    return folder / "x.json"


def _cached(ending: str) -> Seeds:
    def seeds() -> list[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            return [_encoded(Path(place)).with_suffix(ending).read_bytes()]

    return seeds


def _read_cache(data: bytes, folder: Path, ending: str) -> None:
    from textebm.data import cache
    from textebm.errors import DataError

    path = _once(folder, "cache", _encoded) / "x.json"
    _put(path.parent, path.with_suffix(ending).name, data)
    if not cache._is_whole(path):
        raise DataError("damaged")
    cache._opened(path).batch([0])


@target("text-cache", _cached(".json"), 1024)
def text_cache(data: bytes, folder: Path) -> None:
    """What an encoded split in the cache says of itself: what is damaged is encoded anew."""
    _read_cache(data, folder, ".json")


@target("text-cache-arrow", _cached(".arrow"))
def text_cache_arrow(data: bytes, folder: Path) -> None:
    """The encoded split itself."""
    _read_cache(data, folder, ".arrow")


def _image_entry(folder: Path) -> Path:
    from textebm.data.image_cache import Recipe, _build
    from textebm.data.image_decoding import Fitting
    from textebm.data.image_formats import Images
    from textebm.data.image_sources import ArrayPictures
    from textebm.model.image_batch import ImageShape

    pictures = ArrayPictures("x", Images(np.zeros((2, 2, 2, 1), np.uint8), np.arange(2)))
    recipe = Recipe("train", lambda: (pictures, np.arange(2)), ("0", "1"), Fitting(ImageShape(1, 2, 2)))
    _build(folder / "x.json", recipe, None)
    return folder / "x.json"


def _image_entries() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return [_image_entry(Path(place)).read_bytes()]


@target("image-cache", _image_entries, 2048)
def image_cache(data: bytes, folder: Path) -> None:
    """What a split of decoded images in the cache says of itself."""
    from textebm.data import image_cache as cache
    from textebm.errors import DataError

    path = _once(folder, "cache", _image_entry) / "x.json"
    path.write_bytes(data)
    if not cache._is_whole(path):
        raise DataError("damaged")
    cache._opened(path)
