"""The few plain HTTP requests that `up` makes to its own nodes."""

import json
import urllib.error
import urllib.request
from typing import Any, Final

TIMEOUT_SECONDS: Final = 5.0


class HttpFailed(Exception):
    """The node did not answer with 200; the text says what it did."""


def get(url: str, *, api_key: str = "") -> Any:
    """Return the JSON body of a GET. Raises HttpFailed on any other answer, or none."""
    assert url.startswith("http://127.0.0.1:")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            raise HttpFailed(f"{error.code}: {error.read(300).decode(errors='replace')}") from None
    except (OSError, ValueError) as error:
        raise HttpFailed(str(error)) from None
