"""Files written whole or not at all, and the end of a message about a word that nobody knows.

Every file of the house is written here: a kill, a full disk or an exception at any moment leaves the old file or
the new one. What is no file (a pipe, a device, `/dev/stdout`) is written to, never replaced.
"""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")  # folders whose entries are this process's open files


@contextmanager
def replacing(path: PathLike, *, sync: bool = False) -> Iterator[Path]:
    """Gives a temporary file to write to, and puts it in the place of `path` when the block ends without an error.

    Through a symbolic link the file that it points to is replaced; the link stays. The result has the permissions of
    the file that it replaces, or those of a newly created one. A pipe, a device or an open file of this process
    (`/dev/stdout`) gets the bytes instead, at the end of the block.

    Args:
        path: the file; its folder is made if need be.
        sync: wait until the disk has the bytes before the old file goes.

    Yields:
        The temporary file, which exists and is empty: in the folder of `path`, or elsewhere where that is no file.

    Raises:
        OSError: it cannot be written; the temporary file is removed, an older file stays.
    """
    if _is_file(path):
        with _beside(Path(os.path.realpath(path)), sync) as temporary:
            yield temporary
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / Path(path).name
        temporary.touch()
        yield temporary
        with temporary.open("rb") as source, _stream(path) as target:
            shutil.copyfileobj(source, target)


def write_atomically(path: PathLike, data: str | bytes, *, sync: bool = False) -> None:
    """Writes text (in UTF-8) or bytes as `replacing` does."""
    content = data.encode("utf-8") if isinstance(data, str) else data
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error message about a word: `; did you mean 'x'? Valid: x, y`, or `; valid: x, y`."""
    known = sorted(words)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}? Valid: {', '.join(known)}" if near else f"; valid: {', '.join(known)}"


def _is_file(path: PathLike) -> bool:
    """Whether `path` is, or would be, an ordinary file.

    Raises:
        OSError: it is a folder, or a link in a circle.
    """
    if _descriptor(path) is not None:
        return False
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    return stat.S_ISREG(mode)


@contextmanager
def _beside(path: Path, sync: bool) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name is at most 255 bytes long, of which a letter takes up to 4
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        temporary.open("xb").close()
    except OSError as error:  # the user knows the file by its own name
        raise OSError(error.errno, error.strerror, str(path)) from error
    mode = (path if path.exists() else temporary).stat().st_mode
    try:
        yield temporary
        os.chmod(temporary, stat.S_IMODE(mode))  # libraries write files with permissions of their own
        if sync:
            _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # who is told of a disk that failed needs no second error
            temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _stream(path: PathLike) -> BinaryIO:
    """`path` opened for writing: a pipe, a device, or an open file of this process, which goes on where it is."""
    descriptor = _descriptor(path)
    if descriptor is None:
        return open(path, "wb")
    return os.fdopen(os.dup(descriptor), "wb")


def _descriptor(path: PathLike) -> int | None:
    """The open file of this process that a path such as `/dev/stdout` leads to; None for other paths.

    Output that is redirected to a file is a file by its path, but replacing that would leave the output behind.
    """
    folders = {os.path.realpath(folder) for folder in _DESCRIPTORS}
    step = Path(path)
    for _ in range(40):  # as many links as Linux follows
        if step.name.isdigit() and os.path.realpath(step.parent) in folders:
            return int(step.name)
        if not step.is_symlink():
            return None
        step = step.parent / os.readlink(step)
    return None
