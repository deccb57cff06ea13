"""The README's table of settings, made from the settings: `python -m tests.house.settings_table` writes it anew."""

import io
import tokenize
from pathlib import Path

import msgspec

from shared.settings import PREFIX, Settings
from tests.house.sources import ROOT

README = ROOT / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def table() -> str:
    """Return the Markdown table, one row per setting."""
    comments = _comments(ROOT / "shared" / "settings.py")
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field in msgspec.structs.fields(Settings):
        inner = [field]
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            inner = list(msgspec.structs.fields(field.type))
            rows.append(f"| **{(field.type.__doc__ or '').splitlines()[0]}** | | |")
        rows += [_row(one, comments) for one in inner]
    return "\n".join(rows) + "\n"


def written() -> str:
    """Return the table as it stands in the README."""
    return README.read_text().partition(BEGIN)[2].partition(END)[0]


def _row(field: msgspec.structs.FieldInfo, comments: dict[str, str]) -> str:
    default = f"`{field.default}`" if field.default != "" else ""
    meaning = comments.get(field.name, "") or field.name.replace("_", " ")
    return f"| `{PREFIX}{field.name.upper()}` | {default} | {meaning} |"


def _comments(file: Path) -> dict[str, str]:
    """Return the comment behind each field: `name: type = default  # comment`."""
    found: dict[str, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type == tokenize.COMMENT and ":" in token.line.partition("#")[0]:
            found[token.line.partition(":")[0].strip()] = token.string.lstrip("# ").replace("|", "\\|")
    return found


if __name__ == "__main__":
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    README.write_text(head + BEGIN + table() + END + rest.partition(END)[2])
