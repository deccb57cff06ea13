"""README's helper for streams that are taken up again, executed as it stands, across the death of a node."""

import asyncio
import re
from typing import Any

import msgspec

from tests.cluster import ROOT, Cluster


def readme_helper() -> Any:
    """Return the function `events` of README."""
    section = (ROOT / "README.md").read_text().partition("## Taking a stream up again")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["events"]


async def test_readmes_helper_reads_on_when_its_node_dies(cluster: Cluster) -> None:
    await cluster.add_model("sim/plain", step_ms=10, tokens=120)
    api = cluster.start("api0", "api")
    cluster.start("worker0", "worker", engine="simulator")
    await cluster.wait_ready()
    _, key = await cluster.add_account()
    body = {"model": "sim/plain", "messages": [{"role": "user", "content": "tell me a story"}]}
    read = readme_helper()

    def said(restart_after: int | None) -> str:
        text = ""
        for count, data in enumerate(read(cluster.base_url(), key, body)):
            if count == restart_after:
                api.kill()
                api.start()
            if data != "[DONE]":
                text += "".join(choice["delta"].get("content", "") for choice in msgspec.json.decode(data)["choices"])
        return text

    whole = await asyncio.to_thread(said, None)

    assert whole
    assert await asyncio.to_thread(said, 20) == whole
