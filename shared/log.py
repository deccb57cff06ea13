"""Structured logs: an event name and key-values, one line each, JSON in production and readable text on a terminal.

Never prompts, outputs, keys or cookies. `request_id`, `account_id` and `model` are bound once where a request enters.
"""

import logging
import sys
import time
from typing import Final

import msgspec
import structlog


def configure_logging(*, role: str, level: str = "info", as_json: bool = True) -> None:
    """Set up this process's logging; `role` (`api`, `worker`, …) is on every line."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def mark(_: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["role"] = role
        event["level"] = "error" if method == "exception" else method
        event["timestamp"] = time.time()
        return event

    renderer: structlog.types.Processor
    factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if as_json:  # bytes from a C encoder: a canonical line per request must stay cheap
        renderer = _render
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False)
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=[mark, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of a module."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(source=name)
    return logger


def _render(_: object, __: str, event: structlog.typing.EventDict) -> bytes:
    return _encode(event)


_encode: Final = msgspec.json.Encoder(enc_hook=str).encode
