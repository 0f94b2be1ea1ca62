"""Reading .xz files in bounded memory: their header says how much an unpacker needs, and may say anything."""

import io
import lzma
from pathlib import Path
from typing import BinaryIO

MEMORY_LIMIT = 256 << 20
"""Bytes that unpacking may take: `xz -9` needs 65 MiB."""
PIECE = 1 << 16


class _Unpacked(io.RawIOBase):
    """What a file of one or several xz streams holds, one after the other."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._stream = self._new_stream()
        self._waiting = b""

    @staticmethod
    def _new_stream() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MEMORY_LIMIT)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001 (whatever io hands over)
        """Fill a buffer with what comes next.

        Raises:
            lzma.LZMAError: the file is damaged, or needs more memory than the limit.
            EOFError: it is cut short.
        """
        while True:
            if self._stream.eof:
                self._waiting = self._stream.unused_data or self._waiting
                while not (begins := self._waiting.lstrip(b"\0")):  # streams may be padded
                    self._waiting = self._file.read(PIECE)
                    if not self._waiting:
                        return 0
                self._stream, self._waiting = self._new_stream(), begins
            if self._stream.needs_input and not self._waiting:
                self._waiting = self._file.read(PIECE)
                if not self._waiting:
                    raise EOFError("the file ends within an xz stream")
            given, self._waiting = self._waiting, b""
            found = self._stream.decompress(given, max_length=len(buffer))
            if found:
                buffer[: len(found)] = found
                return len(found)

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()


def open_xz(path: Path) -> io.BufferedReader:
    """The bytes in an .xz file.

    Raises:
        OSError: it cannot be opened. What `_Unpacked.readinto` raises comes while it is read.
    """
    return io.BufferedReader(_Unpacked(path.open("rb")), PIECE)
