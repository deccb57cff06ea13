"""Which model `up` serves: the demo model, a GGUF file, the simulator, or one that the catalogue knows already."""

from pathlib import Path
from typing import Final

from compose.errors import StartFailed
from shared.catalogue import Model
from shared.model_ids import check_model_id
from shared.pricing import Prices, parse_price

ENGINES: Final = ("llamacpp", "simulator")
DEMO_ID: Final = "inferbase/demo"
SIMULATOR_ID: Final = "inferbase/simulator"
DEMO_FILE: Final = Path(__file__).parent.parent / "infra" / "demo_model" / "inferbase-demo.gguf"
DEMO_CONTEXT_TOKENS: Final = 2048
GGUF_CONTEXT_TOKENS: Final = 4096
SIMULATOR_CONTEXT_TOKENS: Final = 32_768
GGUF_MAGIC: Final = b"GGUF"
DEFAULT_PRICES: Final = Prices(prompt=parse_price("0.10"), cached=parse_price("0.05"), completion=parse_price("0.40"))


def choose_model(wanted: str | None, *, engine: str) -> Model | None:
    """Return the catalogue row to add; None: `wanted` is an id that the catalogue must hold.

    `wanted` is a GGUF file (served as `local/<its name>`), `ID=FILE`, or an id. Raises StartFailed.
    """
    if engine not in ENGINES:
        raise StartFailed(f"there is no engine {engine!r}: choose {' or '.join(ENGINES)}")
    if engine == "simulator":
        return _model(wanted or SIMULATOR_ID, engine, SIMULATOR_CONTEXT_TOKENS, None)
    if wanted is None:
        return _model(DEMO_ID, engine, DEMO_CONTEXT_TOKENS, gguf_file(DEMO_FILE))
    name, equals, file = wanted.partition("=")
    if equals:
        return _model(name, engine, GGUF_CONTEXT_TOKENS, gguf_file(Path(file)))
    if wanted.endswith(".gguf") or Path(wanted).is_file():
        return _model(f"local/{Path(wanted).stem}", engine, GGUF_CONTEXT_TOKENS, gguf_file(Path(wanted)))
    return None


def gguf_file(file: Path) -> Path:
    """Return where `file` is from everywhere; StartFailed where it cannot be read or is no GGUF file."""
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(GGUF_MAGIC))
    except OSError as error:
        raise StartFailed(f"the model file {file} cannot be read: {error.strerror}") from error
    if magic != GGUF_MAGIC:
        raise StartFailed(f"the model file {file} is not a GGUF file")
    return file.absolute()


def _model(model_id: str, engine: str, context: int, weights: Path | None) -> Model:
    try:
        check_model_id(model_id)
    except ValueError as error:
        raise StartFailed(f"--model: {error}") from None
    options = {"path": str(weights)} if weights else {}
    most = min(4096, context)
    return Model(
        id=model_id,
        engine=engine,
        context=context,
        prices=DEFAULT_PRICES,
        default_max_tokens=most,
        options=options,
    )
