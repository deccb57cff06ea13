"""The one place that knows which engines there are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from shared.errors import SettingsInvalid
from workers.engines.base import Engine, EngineOptions
from workers.engines.validation import parse_options

ENGINES: Final = ("llamacpp", "simulator", "tensorrt")


def check_engine(name: str) -> None:
    """Raise SettingsInvalid where there is no engine `name`."""
    if name not in ENGINES:
        raise SettingsInvalid(f"there is no engine {name!r}: choose {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")


def check_options(name: str, options: dict[str, str]) -> None:
    """Raise SettingsInvalid where the engine `name` would not load a model with `options`; opens nothing."""
    check_engine(name)
    if name == "simulator":
        from workers.engines.simulator_script import Script

        parse_options(options, Script, engine=name)
    elif name == "tensorrt":
        from workers.engines.tensorrt import TensorRtOptions

        parse_options(options, TensorRtOptions, engine=name)
    else:
        from workers.engines.llamacpp import LlamaOptions

        parse_options(options, LlamaOptions, engine=name)


def blocks_while_loading(name: str, options: EngineOptions) -> bool:
    """Tell whether nothing else happens in this process while such a model loads: then nothing may run meanwhile."""
    if name != "llamacpp":
        return False
    from workers.engines.llamacpp import loads_slowly

    return loads_slowly(options)


@asynccontextmanager
async def open_engine(name: str, options: EngineOptions) -> AsyncIterator[Engine]:
    """Load the model of `options` with the engine `name`, imported only now; closed on leaving.

    Raises SettingsInvalid for an unknown name, an unknown option or a bad value, EngineDead where it cannot load.
    """
    check_engine(name)
    if name == "simulator":
        from workers.engines.simulator import open_simulator

        async with open_simulator(options) as simulator:
            yield simulator
    elif name == "tensorrt":
        from workers.engines.tensorrt import open_tensorrt

        async with open_tensorrt(options) as tensorrt:
            yield tensorrt
    else:
        from workers.engines.llamacpp import open_llamacpp

        async with open_llamacpp(options) as llamacpp:
            yield llamacpp
