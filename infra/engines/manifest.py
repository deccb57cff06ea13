"""The manifest of a prepared model folder: what it was made of and how, and what is in it. Needs nothing but Python.

A manifest is written last, so a folder that has one is whole. Hashes are SHA-256 of whole files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

NAME: Final = "inferbase-engine.json"
FORMAT: Final = 1
CHUNK_BYTES: Final = 1 << 20


class ManifestInvalid(Exception):
    """The folder is not what its manifest says."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How a folder was made. Paths are relative, with `/`."""

    precision: str  # keep, or the format that the weights were quantised to
    context: int  # tokens of prompt and answer together, to be served with
    tensor_parallel_size: int
    trtllm_version: str
    source_files: dict[str, str]  # path -> SHA-256, of the checkpoint that it was made from
    calibration_sha256: str | None
    files: dict[str, str]  # path -> SHA-256, of the folder itself
    format: int = FORMAT


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` but a manifest and what begins with a dot."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {file: file.relative_to(folder) for file in files}
    return {
        name.as_posix(): sha256(file)
        for file, name in names.items()
        if name.as_posix() != NAME and not any(part.startswith(".") for part in name.parts)
    }


def sha256(file: Path) -> str:
    """Return the hash of a file, read in chunks: weights are larger than memory may be."""
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while chunk := data.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of `folder`: whole or not at all."""
    draft = folder / f".{NAME}"
    draft.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    draft.replace(folder / NAME)


def verify(folder: Path) -> Manifest:
    """Return the manifest of `folder` where it tells the truth; else raise ManifestInvalid."""
    try:
        fields: dict[str, Any] = json.loads((folder / NAME).read_text())
        if fields.get("format") != FORMAT:
            raise ManifestInvalid(f"{folder / NAME} is of format {fields.get('format')}, not {FORMAT}")
        manifest = Manifest(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise ManifestInvalid(f"{folder} has no usable manifest: {error}") from None
    found = hashes(folder)
    for name in sorted({*found, *manifest.files}):
        if found.get(name) != manifest.files.get(name):
            word = "changed" if name in found and name in manifest.files else "new" if name in found else "missing"
            raise ManifestInvalid(f"{folder / name} is {word}")
    return manifest
