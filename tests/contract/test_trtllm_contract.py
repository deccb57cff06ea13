"""The facts of TensorRT-LLM, the fake made of them, and the script that holds them against a real source."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.check_trtllm_contract import check, main, reader_of
from tests.contract.trtllm_facts import read_facts, write_package

FACTS = read_facts()
SAMPLING = "tensorrt_llm/sampling_params.py"
LLM = "tensorrt_llm/llmapi/llm.py"
RESULT = "tensorrt_llm/executor/result.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout of which every fact holds."""
    write_package(tmp_path)
    return tmp_path


def test_every_fact_has_an_id_of_its_own_and_a_source() -> None:
    assert len({fact["id"] for fact in FACTS}) == len(FACTS)
    assert all(fact["source"] and fact["name"] for fact in FACTS)
    assert all(fact["says"] for fact in FACTS if fact["kind"] in ("behaviour", "reported"))


def test_the_fake_equals_the_facts(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--source", str(source)]) == 0

    assert (
        capsys.readouterr().out == f"{len(FACTS) - 2} holds, 0 differs, 0 missing, 2 unchecked of {len(FACTS)} facts\n"
    )


def test_a_wheel_is_read_as_a_checkout_is(source: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    wheel = tmp_path_factory.mktemp("wheel") / "tensorrt_llm-1.2.1-cp312-cp312-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (source / "tensorrt_llm").rglob("*.py"):
            archive.write(file, file.relative_to(source))
        pins = "".join(f"Requires-Dist: {line}\n" for line in (source / "requirements.txt").read_text().split())
        archive.writestr("tensorrt_llm-1.2.1.dist-info/METADATA", f"Name: tensorrt_llm\n{pins}")

    assert main(["--source", str(wheel)]) == 0


@pytest.mark.parametrize(
    ("file", "before", "after", "verdict"),
    [
        (
            SAMPLING,
            "max_tokens: Any = 32",
            "max_tokens: Any = 64",
            "differs sampling-params default of max_tokens is 64",
        ),
        (SAMPLING, "    top_k: Any = None\n", "", "differs sampling-params no field top_k"),
        (SAMPLING, "class GuidedDecodingParams:", "class Guides:", "missing guided-params the class"),
        (SAMPLING, "bool(self.logprobs)", "self.logprobs is not None", "differs logprobs-need-one without:"),
        (LLM, ", cache_salt=None", "", "differs llm-generate-async no parameter cache_salt"),
        (LLM, "streaming=False", "streaming=True", "differs llm-generate-async default of streaming is True"),
        (LLM, "sampling_params=None,", "tenant, sampling_params=None,", "differs llm-generate-async also needs"),
        (LLM, ", **kwargs: Any", "", "differs llm-init takes no further keywords"),
        (LLM, "class LLM(_TorchLLM)", "class LLM(_TrtLLM)", "differs llm-class its bases are ['_TrtLLM']"),
        (RESULT, "self.cached_tokens = 0", "self.reused_tokens = 0", "missing result-cached-tokens the attribute"),
        (RESULT, "    async def __anext__", "    def __anext__", "differs result-anext awaited or not"),
        (RESULT, "    @property\n    def finished", "    def finished", "differs result-finished no property"),
        ("requirements.txt", "llguidance==0.7.29", "llguidance==1.9.1", "differs pin-llguidance it is ==1.9.1"),
    ],
)
def test_what_differs_is_named_and_fails(
    source: Path, capsys: pytest.CaptureFixture[str], file: str, before: str, after: str, verdict: str
) -> None:
    text = (source / file).read_text()
    assert before in text
    (source / file).write_text(text.replace(before, after))

    assert main(["--source", str(source)]) == 1

    word, name, detail = verdict.split(" ", 2)
    lines = [line for line in capsys.readouterr().out.splitlines() if f" {name}:" in line]
    assert any(line.startswith(word) and detail in line for line in lines)


def test_a_missing_file_is_missing(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / SAMPLING).unlink()

    assert main(["--source", str(source)]) == 1
    assert (
        "missing   sampling-params: tensorrt_llm/sampling_params.py SamplingParams the file" in capsys.readouterr().out
    )


def test_signatures_alone_can_be_held(source: Path) -> None:
    (source / "requirements.txt").unlink()
    text = (source / SAMPLING).read_text().replace("bool(self.logprobs)", "")
    (source / SAMPLING).write_text(text)

    assert main(["--source", str(source)]) == 1
    assert main(["--source", str(source), "--signatures"]) == 0


def test_defaults_of_pydantic_and_of_dataclasses_are_read_alike(tmp_path: Path) -> None:
    fact: dict[str, Any] = {"id": "a", "kind": "fields", "file": "a.py", "name": "A", "source": "s"}
    fact["fields"] = [{"name": "x", "default": "'auto'"}, {"name": "y", "default": "B()"}, {"name": "z"}]
    (tmp_path / "a.py").write_text(
        'class A(Base):\n    x: str = Field(default="auto", description="d")\n'
        '    y: B = Field(default_factory=B, description="d")\n    z: int = Field(description="d")\n'
    )

    assert check([fact], reader_of(tmp_path))[0].word == "holds"


def test_the_script_needs_nothing_but_python(source: Path) -> None:
    script = Path(__file__).parents[2] / "infra" / "check_trtllm_contract.py"

    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), "--source", str(source)], check=False, capture_output=True
    )

    assert done.returncode == 0, done.stderr


def test_what_has_no_fact_cannot_be_asked_of_the_fake(fake_tensorrt: Path) -> None:
    from tensorrt_llm.llmapi import LLM, GuidedDecodingParams, KvCacheConfig, SamplingParams

    with pytest.raises(TypeError):
        SamplingParams(16)
    with pytest.raises(TypeError):
        SamplingParams(thinking_budget=3)
    with pytest.raises(AttributeError):
        SamplingParams().thinking_budget = 3
    with pytest.raises(TypeError):
        KvCacheConfig(onboard=True)
    with pytest.raises(ValueError, match="invalid argument"):
        LLM(model=str(fake_tensorrt / "checkpoint"), max_dreams=1)
    with pytest.raises(ValueError, match="top_k"):
        SamplingParams(top_k=-1)
    with pytest.raises(ValueError, match="one guide"):
        SamplingParams(guided_decoding=GuidedDecodingParams(grammar="x", json="{}"))
    with pytest.raises(ImportError):
        from tensorrt_llm.llmapi import MultimodalEncoder  # noqa: F401
    with pytest.raises(NotImplementedError):
        SamplingParams()._get_output_config()
    assert SamplingParams().max_tokens == 32
