"""The files of the documentation page: Swagger UI from an installed package, and our own script that starts it.

They come from `offapi` (2.5 MB, no dependencies), which holds Swagger UI's published bundle, so that nothing of it is
in this repository, `make up` needs no Node.js, and the page needs no internet. The package is not imported, only read:
importing it builds three pages of 9 MB in all.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

import msgspec

PACKAGE: Final = "offapi"
ASSETS_PATH: Final = "/docs/assets"
STYLE: Final = "swagger_style.css"
BUNDLE: Final = "swagger_bundle.js"
START: Final = "start.js"

_MEDIA_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_DIGEST_CHARACTERS: Final = 16


class Asset(msgspec.Struct, frozen=True, kw_only=True):
    """One file; its `url` changes with its content, so it may be kept for ever."""

    url: str
    media_type: str
    content: bytes


def read_assets() -> dict[str, Asset]:
    """Return the files by name."""
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None and package.origin is not None, f"{PACKAGE} is missing: run `make up`"
    theirs = Path(package.origin).parent
    paths = (theirs / STYLE, theirs / BUNDLE, Path(__file__).parent / START)
    return {path.name: _asset(path) for path in paths}


def _asset(path: Path) -> Asset:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:_DIGEST_CHARACTERS]
    return Asset(url=f"{ASSETS_PATH}/{digest}/{path.name}", media_type=_MEDIA_TYPES[path.suffix], content=content)
