"""What `up --model` means."""

from pathlib import Path

import pytest

from compose.chosen_model import DEMO_ID, SIMULATOR_ID, choose_model
from compose.errors import StartFailed


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF" + bytes(16))
    return file


def test_the_simulator_needs_no_file() -> None:
    model = choose_model(None, engine="simulator")

    assert model is not None
    assert (model.id, model.engine, model.options) == (SIMULATOR_ID, "simulator", {})


def test_the_simulator_may_have_another_name() -> None:
    model = choose_model("my/model", engine="simulator")

    assert model is not None
    assert model.id == "my/model"


def test_without_a_model_llamacpp_serves_the_demo() -> None:
    model = choose_model(None, engine="llamacpp")

    assert model is not None
    assert model.id == DEMO_ID
    assert Path(model.options["path"]).is_file()


def test_a_file_is_served_under_its_own_name(gguf: Path) -> None:
    model = choose_model(str(gguf), engine="llamacpp")

    assert model is not None
    assert (model.id, model.options["path"]) == ("local/small", str(gguf))


def test_a_file_may_be_given_an_id(gguf: Path) -> None:
    model = choose_model(f"Qwen/Small={gguf}", engine="llamacpp")

    assert model is not None
    assert model.id == "Qwen/Small"


def test_an_id_is_left_to_the_catalogue() -> None:
    assert choose_model("Qwen/Known", engine="llamacpp") is None


@pytest.mark.parametrize("wanted", ["missing.gguf", "a/b=missing.gguf"])
def test_a_missing_file_is_named(wanted: str) -> None:
    with pytest.raises(StartFailed, match=r"missing\.gguf cannot be read"):
        choose_model(wanted, engine="llamacpp")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("hello")

    with pytest.raises(StartFailed, match="not a GGUF file"):
        choose_model(str(tmp_path / "notes.gguf"), engine="llamacpp")


def test_an_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(StartFailed, match="llamacpp or simulator"):
        choose_model(None, engine="magic")


def test_a_bad_id_is_refused() -> None:
    with pytest.raises(StartFailed, match="--model: a model id"):
        choose_model("a/health", engine="simulator")
