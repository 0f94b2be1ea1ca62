"""Writers of image files in the published forms, small."""

import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class ImageWriters:
    """What the readers read, written by the libraries that write such files, or byte by byte."""

    classes = CIFAR_CLASSES

    @staticmethod
    def pixels(count: int, height: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
        """(count, height, height, channels) uint8 at random."""
        return np.random.default_rng(seed).integers(0, 256, (count, height, height, channels), dtype=np.uint8)

    @staticmethod
    def png(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **options: object) -> bytes:
        """An image file of (height, width, channels) or (height, width) pixels."""
        image = pytest.importorskip("PIL.Image")
        raw = io.BytesIO()
        flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
        picture = image.fromarray(flat)
        (picture.convert(mode) if mode else picture).save(raw, kind, **options)
        return raw.getvalue()

    @staticmethod
    def idx(array: np.ndarray) -> bytes:
        """An idx file of unsigned bytes."""
        return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()

    def mnist(
        self, folder: Path, train: int = 40, test: int = 12, ending: str = ".gz"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The four files; returns train's pixels and labels."""
        folder.mkdir(parents=True, exist_ok=True)
        pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending]
        for seed, (prefix, count) in enumerate({"t10k": test, "train": train}.items()):
            pixels, labels = self.pixels(count, 28, 1, seed)[..., 0], np.arange(count, dtype=np.uint8) % 10
            (folder / f"{prefix}-images-idx3-ubyte{ending}").write_bytes(pack(self.idx(pixels)))
            (folder / f"{prefix}-labels-idx1-ubyte{ending}").write_bytes(pack(self.idx(labels)))
        return pixels, labels

    def svhn(self, folder: Path, **counts: int) -> None:
        """train_32x32.mat and the like, as MATLAB writes them: the digit 0 is 10."""
        savemat = pytest.importorskip("scipy.io").savemat
        folder.mkdir(parents=True, exist_ok=True)
        for seed, (split, count) in enumerate(counts.items()):
            labels = np.arange(1, count + 1, dtype=np.uint8) % 10
            x = self.pixels(count, seed=seed).transpose(1, 2, 3, 0)
            savemat(
                folder / f"{split}_32x32.mat", {"X": x, "y": np.where(labels, labels, 10)[:, None]}, do_compression=True
            )

    @staticmethod
    def cifar_batch(pixels: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
        """One batch, as Python 3 pickles it."""
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        return pickle.dumps({b"batch_label": b"a batch", b"labels": labels, b"data": rows}, protocol)

    @staticmethod
    def cifar_batch_of_python2(pixels: np.ndarray, labels: list[int]) -> bytes:
        """One batch with the very codes that Python 2 and numpy 1 wrote in 2009."""
        rows = pixels.transpose(0, 3, 1, 2).tobytes()
        return (
            b"\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
            b"K\x00\x85U\x01b\x87Rq\x04(K\x01K" + bytes([len(pixels)]) + b"M\x00\x0c\x86cnumpy\ndtype\nq\x05U\x02u1"
            b"K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
            + struct.pack("<I", len(rows))
            + rows
            + b"tbU\x06labels]("
            + b"".join(b"K" + bytes([n]) for n in labels)
            + b"eu."
        )

    def cifar(self, folder: Path, each: int = 8) -> tuple[np.ndarray, list[int]]:
        """The folder of batches; returns all training pixels and labels."""
        folder.mkdir(parents=True, exist_ok=True)
        everything, numbers = [], []
        for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
            pixels, labels = self.pixels(each, seed=number), [(number + row) % 10 for row in range(each)]
            (folder / name).write_bytes(self.cifar_batch(pixels, labels))
            everything += [pixels] if number < 5 else []
            numbers += labels if number < 5 else []
        return np.concatenate(everything), numbers

    @staticmethod
    def pack(path: Path, members: dict[str, bytes]) -> Path:
        """An archive of these members, in this order, of the kind that its name says."""
        if path.name.endswith(".zip"):
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
                for name, raw in members.items():
                    packed.writestr(name, raw)
            return path
        mode = "w:" + {"tar": "", "tgz": "gz"}.get(path.name.rpartition(".")[2], path.name.rpartition(".")[2])
        with tarfile.open(path, mode) as tar:
            for name, raw in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
        return path

    @staticmethod
    def spread(folder: Path, members: dict[str, bytes]) -> Path:
        """A folder of these files."""
        for name, raw in members.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(raw)
        return folder


@pytest.fixture
def write() -> ImageWriters:
    """Writers of image files."""
    return ImageWriters()
