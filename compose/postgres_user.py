"""How Postgres, which refuses to run as root, runs where we are root.

Three ways, the first that works: a user namespace in which we are `nobody` (files stay ours, folders stay closed);
the user `nobody` itself; `nobody` allowed to walk through closed folders, for an installation below /root. Only what
Postgres itself owns changes hands; no permission of any other folder is touched.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from compose.errors import StartFailed

NOBODY: Final = 65534
PROBE_SECONDS: Final = 10.0

_NAMESPACE: Final = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
_USER: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
_WALKER: Final = (*_USER, "--inh-caps=+dac_override", "--ambient-caps=+dac_override")


def postgres_prefix(postgres: Path, folder: Path) -> tuple[str, ...]:
    """Return what to put before a Postgres command that works in `folder`, after handing the folder over if it must be.

    Raises StartFailed if we are root and no way works here.
    """
    if os.geteuid() != 0:
        return ()
    if _works(_NAMESPACE, postgres, folder):
        _hand_over(folder, 0)
        return _NAMESPACE
    _hand_over(folder, NOBODY)
    for prefix in (_USER, _WALKER):
        if _works(prefix, postgres, folder):
            return prefix
    raise StartFailed(
        "Postgres must not run as root, and this machine lets root become nobody else: run as an ordinary user"
    )


def _works(prefix: tuple[str, ...], postgres: Path, folder: Path) -> bool:
    if shutil.which(prefix[0]) is None:
        return False
    script = '"$1" --version && test -r "$2" && test -w "$2"'
    command = [*prefix, "sh", "-c", script, "probe", str(postgres), str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=PROBE_SECONDS).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _hand_over(folder: Path, owner: int) -> None:
    if folder.stat().st_uid == owner:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner, owner, follow_symlinks=False)
