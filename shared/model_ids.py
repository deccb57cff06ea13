"""Which ids a model may have: it stands in URLs, in the names of Redis keys and in hash tags."""

from typing import Final

MODEL_ID_CHARACTERS_MOST: Final = 200
FORBIDDEN: Final = frozenset("{}?#%\\")


def check_model_id(model_id: str) -> str:
    """Return `model_id`; ValueError says what is wrong with it."""
    if not model_id or len(model_id) > MODEL_ID_CHARACTERS_MOST:
        raise ValueError(f"a model id has 1 to {MODEL_ID_CHARACTERS_MOST} characters")
    if not model_id.isprintable() or " " in model_id:
        raise ValueError("a model id holds no spaces and no control characters")
    if FORBIDDEN.intersection(model_id):
        raise ValueError(f"a model id holds none of {' '.join(sorted(FORBIDDEN))}")
    segments = model_id.split("/")
    if not all(segments) or "." in segments or ".." in segments:
        raise ValueError("a model id is one or more names with single slashes between them")
    if len(segments) > 1 and segments[-1] == "health":
        raise ValueError("a model id cannot end in /health: that is where its health is asked")
    return model_id
