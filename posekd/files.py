"""Files written whole or not at all, and suggestions for an unknown word.

Every file that posekd writes goes through here: a kill, a full disk or an exception at any moment leaves either the old
file or the new one. What is not a regular file (a pipe, a device, `/dev/stdout`) is written to, never replaced.
"""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")  # folders whose entries are this process's open files


@contextmanager
def replacing(path: PathLike, *, sync: bool = False) -> Iterator[Path]:
    """Gives a temporary file to write to, and moves it to `path` when the block ends without an error.

    If `path` is a symbolic link, the file that it points to is replaced and the link stays. The result has the
    permissions of the file that it replaces, or those of a newly created one. A pipe, a device or an open file of this
    process (`/dev/stdout`) gets the bytes instead, at the end of the block.

    Args:
        path: the file; its folder is created if it does not exist.
        sync: wait until the disk has the bytes before the old file goes.

    Yields:
        The temporary file, which exists and is empty; in the folder of `path`, or elsewhere for a pipe or device.

    Raises:
        OSError: the file cannot be written; the temporary file is removed and an older file stays.
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


@contextmanager
def growing(path: PathLike, start: str = "", end: str = "") -> Iterator[Callable[[str], None]]:
    """Gives a function that appends an entry to a file, whose length nobody needs to know before.

    Whatever ends the block, `path` then has `start`, all whole entries and `end`; an older file is replaced at that
    moment. A kill that no program notices leaves them in a file `.NAME.*.partial` beside it. A pipe or device gets the
    entries one by one.

    Args:
        path: the file; its folder is created if it does not exist.
        start: what the file begins with.
        end: what it ends with, after every entry: there is always room for it.

    Raises:
        OSError: the file cannot be written, or (from the function) an entry did not fit; it is then not in the file.
    """
    if not _is_file(path):
        with _stream(path) as stream:
            stream.write(start.encode())
            yield lambda entry: _send(stream, entry)
            stream.write(end.encode())
        return
    target = Path(os.path.realpath(path))
    temporary = _create_beside(target)
    try:
        with temporary.open("r+b", buffering=0) as file:
            _append(file, start, end, target)
            yield lambda entry: _append(file, entry, end, target)
    except BaseException:
        if temporary.stat().st_size:  # what was done is kept
            os.replace(temporary, target)
        raise
    os.replace(temporary, target)


def _send(stream: BinaryIO, entry: str) -> None:
    stream.write(entry.encode())
    stream.flush()


def _append(file: RawIOBase, entry: str, end: str, target: Path) -> None:
    """Writes an entry over the file's end, and the end after it; if that fails, the file is as it was."""
    place, data = file.tell(), (entry + end).encode()
    try:
        written = 0
        while written < len(data):
            written += file.write(data[written:]) or 0
    except OSError as error:
        file.truncate(place)
        file.seek(place)
        with suppress(OSError):  # it was there before
            file.write(end.encode())
            file.seek(place)
        raise OSError(error.errno, error.strerror, str(target)) from error
    file.seek(-len(end.encode()), os.SEEK_CUR)


def check_writable(path: PathLike) -> None:
    """Refuses a path that `replacing` could not write, before the work whose result goes there. Nothing is created.

    Args:
        path: the file; for a folder of results, any file in it.

    Raises:
        OSError: it is a folder, a link that leads back to itself, lies in what is no folder, or may not be written.
    """
    if not _is_file(path):
        if _descriptor(path) is None and not _allowed(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written: no permission")
        return
    target = Path(os.path.realpath(path))
    folder = next(parent for parent in target.parents if os.path.lexists(parent))  # the others are made
    if not folder.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {folder} is not a folder")
    if not _allowed(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: no permission to create files in {folder}")


def _allowed(path: PathLike, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of an error message about an unknown word: `; did you mean 'x'? Valid: x, y`, or `; valid: x, y`."""
    known = sorted(words)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}? Valid: {', '.join(known)}" if near else f"; valid: {', '.join(known)}"


def _is_file(path: PathLike) -> bool:
    """Whether `path` is, or would be, an ordinary file.

    Raises:
        OSError: it is a folder, or a link that leads back to itself.
    """
    if _descriptor(path) is not None:
        return False
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return True
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    return stat.S_ISREG(mode)


@contextmanager
def _beside(path: Path, sync: bool) -> Iterator[Path]:
    temporary = _create_beside(path)
    mode = (path if path.exists() else temporary).stat().st_mode
    try:
        yield temporary
        os.chmod(temporary, stat.S_IMODE(mode))  # some libraries set their own permissions
        if sync:
            _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise


def _create_beside(path: Path) -> Path:
    """An empty temporary file in the folder of `path`, which is created if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name has at most 255 bytes, and a letter takes up to 4
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    try:
        temporary.open("xb").close()
    except OSError as error:  # the message names the user's file, not the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error
    return temporary


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _stream(path: PathLike) -> BinaryIO:
    """`path` opened for writing: a pipe, a device, or an open file of this process, continued at its position."""
    descriptor = _descriptor(path)
    if descriptor is None:
        return open(path, "wb")
    return os.fdopen(os.dup(descriptor), "wb")


def _descriptor(path: PathLike) -> int | None:
    """The open file of this process that a path such as `/dev/stdout` leads to; None for other paths.

    Output redirected to a file has that file's path, but replacing the file would lose the output written before.
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
