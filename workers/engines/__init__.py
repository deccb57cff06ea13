"""The one place that knows which engines there are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shared.errors import SettingsInvalid
from workers.engines.base import Engine, EngineOptions

ENGINES: Final = ("llamacpp", "simulator")


@asynccontextmanager
async def open_engine(name: str, options: EngineOptions) -> AsyncIterator[Engine]:
    """Load the model of `options` with the engine `name`, imported only now; closed on leaving.

    Raises SettingsInvalid for an unknown name, an unknown option or a bad value, EngineDead where it cannot load.
    """
    if name == "simulator":
        from workers.engines.simulator import open_simulator

        async with open_simulator(options) as simulator:
            yield simulator
    elif name == "llamacpp":
        from workers.engines.llamacpp import open_llamacpp

        async with open_llamacpp(options) as llamacpp:
            yield llamacpp
    else:
        raise SettingsInvalid(f"there is no engine {name!r}; there are: {', '.join(ENGINES)}")
