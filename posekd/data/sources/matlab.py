"""Reading and writing MATLAB files: scipy where it is installed, and a sentence for whatever is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posekd.files import replacing


def load_mat(file: Path, setting: str) -> dict[str, Any]:
    """The variables of a `.mat` file; structs have attributes, axes of length 1 are removed.

    Nothing is unpickled or evaluated: the format holds arrays, texts and structs only.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: scipy is not installed.
        ValueError: it is not a MATLAB file of a version before 7.3.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist (setting `{setting}`)")
    io = scipy_io(f"{file} is a MATLAB file")
    try:
        content = io.loadmat(str(file), squeeze_me=True, struct_as_record=False)
    except NotImplementedError:
        raise ValueError(
            f"{file} is a MATLAB 7.3 file (HDF5), which is not read here: save it again with `save -v7`"
        ) from None
    except Exception as error:  # scipy raises many types of exception for malformed files
        raise ValueError(f"{file} is not a MATLAB file that scipy can read (setting `{setting}`): {error}") from error
    return {name: value for name, value in content.items() if not name.startswith("__")}


def save_mat(path: Path, variables: dict[str, Any]) -> None:
    """Writes a `.mat` file (version 5); dictionaries become structs.

    Raises:
        ImportError: scipy is not installed.
    """
    io = scipy_io(f"{path} would be a MATLAB file")
    with replacing(path) as partial, partial.open("wb") as file:
        io.savemat(file, variables, do_compression=True)


def struct_array(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """A MATLAB struct array `[1, N]` of dictionaries with the same keys."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for column, row in enumerate(rows):
        for name, value in row.items():
            array[0, column][name] = value
    return array


def scipy_io(why: str) -> Any:
    """The module `scipy.io`.

    Args:
        why: what it is needed for; the message begins with it.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        import scipy.io
    except ImportError:
        raise MissingScipyError(
            f"{why}, and scipy, which reads and writes them, is not installed: pip install 'posekd[mat]'"
        ) from None
    return scipy.io


class MissingScipyError(ImportError, ValueError):
    """scipy is not installed. (Also a `ValueError`, so that the command line shows only the message.)"""


def field(struct: Any, name: str, who: str) -> Any:
    """A field of a struct.

    Raises:
        ValueError: it has no such field.
    """
    value = getattr(struct, name, None)
    if value is None:
        raise ValueError(f"{who} has no field {name!r}; it has {fields_of(struct)}")
    return value


def fields_of(struct: Any) -> list[str]:
    """Names of a struct's fields; an empty list for anything else."""
    return list(getattr(struct, "_fieldnames", ()))


def elements(value: Any) -> Sequence[Any]:
    """The elements of a struct or cell array of any length: MATLAB's arrays of one element lose their shape."""
    if isinstance(value, np.ndarray):
        return list(value.reshape(-1))
    return [] if value is None else [value]


def number(value: Any) -> float:
    """A scalar as a float: NaN for an empty one, and the number for a text (`'1'`), because MPII's files mix them."""
    try:
        array = np.asarray(value)
        return float(array.reshape(-1)[0]) if array.size and array.reshape(-1)[0] != "" else float("nan")
    except (TypeError, ValueError):
        return float("nan")
