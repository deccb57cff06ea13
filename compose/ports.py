"""TCP ports on the loopback interface."""

import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"
QUIET_PORTS: Final = range(20_000, 32_000)  # below those that kernels give to outgoing connections


def free_port() -> int:
    """Return a port that nobody listens on now. Whoever takes it first has it, so take it at once."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def quiet_port() -> int:
    """Return a free port that no outgoing connection takes by chance before its server does, or while it restarts."""
    return next(port for port in random.sample(QUIET_PORTS, len(QUIET_PORTS)) if is_free(port))


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Tell whether a server could listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
