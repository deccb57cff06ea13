"""The folder that lasts between runs: made once, private, never silently replaced."""

from pathlib import Path

import pytest

from compose.data_folder import Credentials, DataFolder, write_private
from compose.errors import StartFailed


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.make()
    return folder


def test_secrets_are_made_once_and_differ_between_folders(folder: DataFolder, tmp_path: Path) -> None:
    other = DataFolder(tmp_path / "other")
    other.make()

    assert folder.secrets() == DataFolder(folder.path).secrets()
    assert folder.secrets() != other.secrets()
    assert len(folder.secrets().key_pepper) >= 32


def test_a_folder_from_before_there_were_sessions_gets_a_key_for_them(folder: DataFolder) -> None:
    write_private(folder.path / "secrets.json", b'{"key_pepper":"old pepper","wire_key":"old key"}')

    found = folder.secrets()

    assert (found.key_pepper, found.wire_key) == ("old pepper", "old key")
    assert len(found.jwt_key) >= 32
    assert folder.kept_secrets() == found


def test_what_is_kept_can_be_read_by_its_owner_only(folder: DataFolder) -> None:
    folder.secrets()
    folder.keep_credentials(Credentials(account_id="acct_1", key_id="key_1", api_key="k"))

    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.path.iterdir()}

    assert modes == {"logs": 0o700, "secrets.json": 0o600, "credentials.json": 0o600}
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_a_second_run_finds_its_credentials(folder: DataFolder) -> None:
    kept = Credentials(account_id="acct_1", key_id="key_1", api_key="k")

    folder.keep_credentials(kept)

    assert DataFolder(folder.path).credentials() == kept


def test_damaged_secrets_stop_the_start_instead_of_being_replaced(folder: DataFolder) -> None:
    (folder.path / "secrets.json").write_text('{"key_pepper": ')

    with pytest.raises(StartFailed, match="damaged"):
        folder.secrets()


def test_a_second_run_on_the_same_folder_is_refused(folder: DataFolder) -> None:
    with folder.locked(), pytest.raises(StartFailed, match="another inferbase"), DataFolder(folder.path).locked():
        pass


def test_the_lock_ends_with_its_holder(folder: DataFolder) -> None:
    with folder.locked():
        pass

    with DataFolder(folder.path).locked():
        assert (folder.path / "lock").exists()


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")

    with pytest.raises(StartFailed, match=r"taken cannot be written: .*--data-dir"):
        DataFolder(tmp_path / "taken").make()


def test_a_folder_without_anything_says_so(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "nothing")

    assert (folder.ready(), folder.credentials(), folder.kept_secrets(), folder.has_cluster) == (
        None,
        None,
        None,
        False,
    )


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    write_private(file, b"old")
    before = file.open("rb")

    write_private(file, b"new")

    with before:
        assert (before.read(), file.read_bytes()) == (b"old", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["ready.json"]
