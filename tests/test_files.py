"""Files written whole or not at all: through links, into pipes, and with the old file left by whatever fails."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

import posekd
from posekd.files import check_writable, nearest, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_half(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.fixture
def umask_027():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def nobody(tmp_path):
    """A block without the superuser's right to write everywhere."""

    @contextmanager
    def drop():
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(user)

    for folder in (tmp_path, *tmp_path.parents):  # which pytest, and its workers, open to their owner alone
        if folder == Path(tempfile.gettempdir()).resolve() or folder.stat().st_uid != os.geteuid():
            break
        folder.chmod(0o755)
    return drop


class TestFiles:
    def test_text_is_utf_8_bytes_are_as_they_are_and_the_folder_is_made(self, tmp_path):
        write_atomically(tmp_path / "new" / "a", "Köln\n")
        write_atomically(tmp_path / "new" / "b", b"\xff\r\n")
        assert (tmp_path / "new" / "a").read_bytes() == b"K\xc3\xb6ln\n"
        assert (tmp_path / "new" / "b").read_bytes() == b"\xff\r\n"
        assert names(tmp_path / "new") == ["a", "b"]

    def test_the_old_file_is_there_until_the_new_one_is_whole(self, tmp_path):
        path = tmp_path / "a.txt"
        write_atomically(path, "old")
        with replacing(path, sync=True) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
            assert temporary.parent == tmp_path  # a rename does not cross disks
        assert path.read_text() == "new"
        assert names(tmp_path) == ["a.txt"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, error):
        path = tmp_path / "a.txt"
        write_atomically(path, "old")
        with pytest.raises(error):
            write_half(path, error)
        assert path.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_two_writers_of_a_file_do_not_meet(self, tmp_path):
        path = tmp_path / "a.txt"
        with replacing(path) as one, replacing(path) as other:
            one.write_text("one")
            other.write_text("other")
        assert path.read_text() == "one"  # whose block ended last
        assert names(tmp_path) == ["a.txt"]

    def test_a_name_as_long_as_names_may_be(self, tmp_path):
        path = tmp_path / ("ö" * 127)  # 254 bytes of 255
        write_atomically(path, "x")
        assert path.read_text() == "x"

    def test_a_folder_is_refused_with_a_sentence(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
            write_atomically(tmp_path, "x")

    def test_an_error_names_the_file_and_not_the_temporary_one(self, tmp_path):
        with pytest.raises(OSError, match=r"File name too long: '.*/x{300}'"):
            write_atomically(tmp_path / ("x" * 300), "x")


class TestPermissions:
    def test_a_new_file_has_those_of_any_new_file(self, tmp_path, umask_027):
        with replacing(tmp_path / "a") as temporary:
            temporary.chmod(0o600)  # as a library may
        assert permissions(tmp_path / "a") == 0o640

    def test_a_replaced_file_keeps_its_own(self, tmp_path, umask_027):
        path = tmp_path / "a"
        path.touch()
        path.chmod(0o604)
        write_atomically(path, "new")
        assert path.read_text() == "new"
        assert permissions(path) == 0o604


class TestLinks:
    def test_the_link_stays_and_its_target_is_replaced(self, tmp_path):
        (tmp_path / "disk").mkdir()
        target, link = tmp_path / "disk" / "real", tmp_path / "link"
        target.write_text("old")
        link.symlink_to(Path("disk") / "real")
        write_atomically(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
        assert names(tmp_path / "disk") == ["real"]

    def test_a_link_to_nothing_makes_its_target(self, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "disk" / "real")
        write_atomically(link, "new")
        assert link.is_symlink()
        assert (tmp_path / "disk" / "real").read_text() == "new"

    def test_links_in_a_circle_are_an_error(self, tmp_path):
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(OSError, match="symbolic links"):
            write_atomically(tmp_path / "a", "new")
        assert (tmp_path / "a").is_symlink()


class TestStreams:
    def test_a_pipe_is_written_to(self, tmp_path):
        pipe, read = tmp_path / "pipe", []
        os.mkfifo(pipe)
        reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
        reader.start()
        write_atomically(pipe, "through")
        reader.join(10)
        assert read == ["through"]
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert names(tmp_path) == ["pipe"]

    def test_a_pipe_gets_nothing_of_what_fails(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)  # without a reader: opening it would wait for ever
        with pytest.raises(KeyError):
            write_half(pipe, KeyError)

    def test_a_device_stays_a_device(self):
        write_atomically("/dev/null", "x")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)

    @pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "link"])
    def test_redirected_output_goes_on_where_it_is(self, tmp_path, path):
        """`/dev/stdout` is a file here, by its path: replacing it would lose what else is printed."""
        (tmp_path / "link").symlink_to("/dev/stdout")
        script = (
            "from posekd.files import write_atomically\n"
            "print('before', flush=True)\n"
            f"write_atomically({path!r}, 'between\\n')\n"
            "print('after')\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(posekd.__file__).parents[1])}
        with (tmp_path / "out").open("w") as out:
            subprocess.run([sys.executable, "-c", script], stdout=out, cwd=tmp_path, env=environment, check=True)
        assert (tmp_path / "out").read_text() == "before\nbetween\nafter\n"
        assert names(tmp_path) == ["link", "out"]


class TestCheckedBeforeTheWork:
    def test_what_can_be_written_passes_and_nothing_is_created(self, tmp_path):
        (tmp_path / "old").touch()
        (tmp_path / "link").symlink_to("target")
        for name in ("old", "new", "link", "some/new/folder/file"):
            check_writable(tmp_path / name)
        for device in ("/dev/null", "/dev/stdout"):
            check_writable(device)
        assert names(tmp_path) == ["link", "old"]

    def test_a_folder(self, tmp_path):
        with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
            check_writable(tmp_path)

    def test_a_file_in_the_place_of_a_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match=r"file/more/a\.json cannot be written: .*/file is not a folder"):
            check_writable(tmp_path / "file" / "more" / "a.json")

    def test_a_link_into_a_file_and_one_to_itself(self, tmp_path):
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path / "file" / "a.json")
        (tmp_path / "circle").symlink_to("circle")
        with pytest.raises(NotADirectoryError, match="is not a folder"):
            check_writable(tmp_path / "link")
        with pytest.raises(OSError, match="symbolic links"):
            check_writable(tmp_path / "circle")

    def test_a_folder_or_pipe_without_permission(self, tmp_path, nobody):
        closed, pipe = tmp_path / "closed", tmp_path / "pipe"
        closed.mkdir(mode=0o555)
        os.mkfifo(pipe, 0o444)
        with nobody():
            with pytest.raises(PermissionError, match=r"no permission to create files in .*/closed"):
                check_writable(closed / "new" / "a.json")
            with pytest.raises(PermissionError, match=r"pipe cannot be written: no permission"):
                check_writable(pipe)


def test_the_nearest_word_comes_first_then_all_in_order():
    assert nearest("lrr", ["momentum", "lr"]) == "; did you mean 'lr'? Valid: lr, momentum"
    assert nearest("xyzzy", ["momentum", "lr"]) == "; valid: lr, momentum"
