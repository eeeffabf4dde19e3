"""Bytes of a text file to text: UTF-8 alone is read; what a file is instead is said, with what mends it."""

from __future__ import annotations

from rewards.contracts import TaskError

BOM = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 4 << 20
#: Every second of so many first bytes is 0: plain letters in UTF-16. UTF-8 has no such text.
_LEAST_BYTES = 4
#: First bytes of files that are no plain text: what they are, and how to make them so.
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed by gzip", "gunzip -k FILE"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "zstd -d FILE"),
    (b"\xfd7zXZ", "compressed by xz", "xz -dk FILE"),
    (b"BZh", "compressed by bzip2", "bunzip2 -k FILE"),
    (b"PK\x03\x04", "a ZIP archive", "unzip FILE"),
    (b"\xff\xfe\x00\x00", "in UTF-32", "iconv -f UTF-32 -t UTF-8 FILE > NEW"),
    (b"\xff\xfe", "in UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"\xfe\xff", "in UTF-16", "iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"PAR1", "parquet", "call it .parquet"),
    (b"ARROW1", "an Arrow file", "write it by datasets' save_to_disk, or as parquet"),
)


def require_plain_text(head: bytes, origin: str) -> None:
    """Raises `TaskError` where a file's first bytes are those of no UTF-8 text; a byte order mark of UTF-8 is well."""
    for first, what, remedy in _OTHERS:
        if head.startswith(first):
            raise TaskError(f"{origin} is {what}, expected lines of UTF-8; make it so: {remedy}")
    for offset, order in ((1, "LE"), (0, "BE")):
        if len(head) >= _LEAST_BYTES and not any(head[offset::2]) and any(head):
            remedy = f"iconv -f UTF-16{order} -t UTF-8 FILE > NEW"
            raise TaskError(
                f"{origin} looks like UTF-16 without a byte order mark, expected UTF-8; make it so: {remedy}"
            )


def decoded(line: bytes, where: str) -> str:
    """The text of a line; raises `TaskError` where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        meant = f", {bytes([byte]).decode('latin-1')!r} in Latin-1" if byte >= 0xA0 else ""
        raise TaskError(
            f"{where} is not UTF-8: byte {error.start} is {byte:#04x}{meant}; make it so, such as by "
            f"iconv -f ISO-8859-1 -t UTF-8 FILE > NEW"
        ) from None
