"""A student as a static web page: its exported network, onnxruntime-web, and a page that draws the skeleton.

Nothing comes from the network when the page runs, and no image leaves the browser. onnxruntime-web is fetched from the
npm registry once, checked against the hash below, and kept in the user's cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from posekd.deploy.export import Feed, Precision, export_onnx
from posekd.deploy.facts import Facts
from posekd.deploy.load import Ready
from posekd.files import check_writable, write_atomically
from posekd.packages import MissingPackageError
from posekd.paradigms import paradigm_of
from posekd.viz.draw import edge_colour

RUNTIME = "onnxruntime-web-1.30.0.tgz"
REGISTRY = "https://registry.npmjs.org"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
PAGE_FILES = ("index.html", "page.css", "page.js", "pose.js", "draw.js")
NETWORK = "student.onnx"


def export_web(
    found: Ready,
    folder: str | os.PathLike[str],
    precision: Precision = "fp32",
    calibration: Iterable[Feed] | None = None,
) -> Facts:
    """Writes a page that runs a network in the browser; any static server can serve the folder.

    Args:
        found: a network for crops; it is not changed.
        folder: is made; files of these names in it are replaced, others stay.
        precision: see `export_onnx`.
        calibration: see `export_onnx`.

    Returns:
        What the exported network says of itself.

    Raises:
        ValueError: a network that sees whole images, or one that cannot be exported.
        MissingPackageError: onnxruntime-web is not in the cache and cannot be fetched; or see `export_onnx`.
    """
    place, paradigm = Path(folder), paradigm_of(found.model)
    check_writable(place / NETWORK)
    if not paradigm.crops_boxes:
        raise ValueError(f"the page shows networks that crop a person, and this is a {paradigm.title} network")
    runtime = runtime_files()
    facts = export_onnx(found, place / NETWORK, precision, calibration)
    for name, content in runtime.items():
        write_atomically(place / name, content)
    for name in PAGE_FILES:
        write_atomically(place / name, Path(__file__).with_name(name).read_bytes())
    write_atomically(place / "facts.json", json.dumps(page_facts(facts), indent=1))
    return facts


def page_facts(facts: Facts) -> dict[str, object]:
    """What the page needs to know of a network: names, edges with their colours, words for its head."""
    skeleton, (height, width) = facts.skeleton, facts.spec.size
    return {
        "title": facts.model,
        "facts": f"{skeleton.num_keypoints} keypoints, input {height} × {width}, {facts.precision}",
        "keypoints": skeleton.keypoints,
        "edges": [{"ends": [a, b], "colour": "#{:02x}{:02x}{:02x}".format(*edge_colour(skeleton, a, b))}
                  for a, b in skeleton.edges],
    }  # fmt: skip


def cache_folder() -> Path:
    """Where fetched files are kept: POSEKD_CACHE, or `posekd` in the user's cache."""
    chosen = os.environ.get("POSEKD_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posekd"


def runtime_files() -> dict[str, bytes]:
    """The files of onnxruntime-web that the page needs, from the cache or the registry.

    Raises:
        MissingPackageError: the registry cannot be reached, or sends something else.
    """
    kept = cache_folder() / RUNTIME
    archive = kept.read_bytes() if kept.is_file() else b""
    if not _is_right(archive):
        url = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/onnxruntime-web/-/{RUNTIME}"
        remedy = f"Fetch it where there is a network ({url}) and put it at {kept}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                archive = answer.read()
        except (OSError, ValueError, HTTPException) as error:
            raise MissingPackageError(f"{RUNTIME} cannot be fetched: {error}. {remedy}") from error
        if not _is_right(archive):
            raise MissingPackageError(f"{url} gave another file than {RUNTIME}: its SHA-512 differs. {remedy}")
        with suppress(OSError):  # without a cache it works as well, once more slowly
            write_atomically(kept, archive)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        members = {name: files.extractfile(f"package/dist/{name}") for name in RUNTIME_FILES}
        return {name: member.read() for name, member in members.items() if member is not None}


def _is_right(archive: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(archive).digest()).decode() == SHA512
