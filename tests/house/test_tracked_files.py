"""What no tracked file holds: hosts of package registries, paths of the machine it was written on, secrets."""

import re
import stat

from tests.house.sources import ROOT, tracked_files

# Written apart, so that this file does not find itself.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "files.python" + "hosted.org",
    "registry.npm" + "js.org",
    "registry.yarn" + "pkg.com",
    "download.py" + "torch.org",
    "pypi.nv" + "idia.com",
]
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:work|home/\w+|root|opt/(?:pypi|wheels)|Users/\w+)/[\w.-]")
SECRETS = re.compile(r"inf_[0-9A-Za-z]{49}|-----BEGIN [A-Z ]*PRIVATE KEY|(?:AKIA|ghp_|sk-proj-)[0-9A-Za-z]{16}")
TEXT_BYTES_MOST = 4 * 1024 * 1024
FILE_BYTES_MOST = 16 * 1024 * 1024


def test_no_registry_host_is_named() -> None:
    assert _lines_with(re.compile("|".join(map(re.escape, REGISTRY_HOSTS)))) == []


def test_no_path_of_a_machine_is_named() -> None:
    assert _lines_with(MACHINE_PATHS) == []


def test_no_secret_is_kept() -> None:
    assert _lines_with(SECRETS) == []


def test_no_file_is_too_large_for_a_clone() -> None:
    large = [path.relative_to(ROOT).as_posix() for path in tracked_files() if path.stat().st_size > FILE_BYTES_MOST]

    assert large == []


def test_the_locks_pin_every_package_by_hash() -> None:
    for name in ("requirements.lock", "requirements-test.lock"):
        text = (ROOT / name).read_text()
        pinned = re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)
        entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]

        assert len(pinned) == len(entries)
        assert all("--hash=sha256:" in entry for entry in entries)
        assert not {"torch", "tensorrt-llm"} & set(pinned)


def test_the_test_lock_agrees_with_the_lock() -> None:
    pins = [
        set(re.findall(r"^[a-z0-9-]+==[^ ;]+", (ROOT / name).read_text(), re.MULTILINE))
        for name in ("requirements.lock", "requirements-test.lock")
    ]

    assert pins[0] - pins[1] == set()


def test_continuous_integration_can_be_run() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def _lines_with(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked_files():
        content = path.read_bytes()[:TEXT_BYTES_MOST]
        if b"\0" in content[:8192]:
            continue
        lines = content.decode(errors="replace").splitlines()
        found += [f"{path.relative_to(ROOT)}:{i}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    return found
