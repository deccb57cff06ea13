"""The few plain HTTP requests that `up` makes to its own nodes."""

import http.client
import json
from typing import Any, Final

from compose.ports import LOOPBACK

TIMEOUT_SECONDS: Final = 5.0


class HttpFailed(Exception):
    """The node did not answer with 200; the text says what it did."""


def get(port: int, path: str, *, api_key: str = "") -> Any:
    """Return the JSON body of a GET to this machine. Raises HttpFailed on any other answer, or none."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise HttpFailed(f"{response.status} {body[:300].decode(errors='replace')}")
        return json.loads(body or b"null")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise HttpFailed(str(error)) from None
    finally:
        connection.close()
