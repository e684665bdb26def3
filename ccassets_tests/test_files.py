"""Files that appear whole or not at all, locks that die with their process, and a disk that refuses."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ccassets.errors import StorageError
from ccassets.files import (
    digest_files,
    exclusive,
    files_in,
    fingerprint,
    remove_leftovers,
    replacing,
    require_space,
    write_text,
)
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.refusals import AVAILABLE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code`; its standard output can be read line by line."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_file_appears_when_it_is_finished_and_the_old_one_is_there_until_then(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")

    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent

    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_a_file_that_could_not_be_finished_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_leftovers_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ccassets.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); print(temporary.name, flush=True); sys.stdin.read()"
    )
    writer = python(code, tmp_path / "a.txt")
    half = line(writer)
    others = [".download.partial", ".notes.12345678.part", "a.txt.0123abcd.partial", ".a.txt.0123abcd.partial.bak"]
    for other in others:
        (tmp_path / other).write_text("mine")

    remove_leftovers(tmp_path)
    while_it_lives = names(tmp_path)
    writer.kill()
    assert writer.wait() == -signal.SIGKILL
    remove_leftovers(tmp_path)

    assert while_it_lives == sorted([*others, half])
    assert names(tmp_path) == sorted(others)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    for name in ("b.h5", "a.h5", "c.txt"):
        (tmp_path / name).touch()

    def without_a_free_descriptor() -> dict[str, list[str]]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        return {"found": [str(path) for path in files_in(tmp_path, "*.h5")]}

    assert [path.name for path in files_in(tmp_path, "*.h5")] == ["a.h5", "b.h5"]
    assert files_in(tmp_path / "nowhere", "*.h5") == []
    code, answer = Fork(without_a_free_descriptor).end()
    assert code == 1, answer
    assert answer["sentence"].startswith(f"{tmp_path} cannot be read: Too many open files.")


def test_one_writer_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ccassets.files import exclusive\n"
        "print('asks', flush=True)\n"
        "with exclusive(Path(sys.argv[1])):\n    print('has it', flush=True); sys.stdin.read()"
    )
    first = python(code, tmp_path / "rows")
    assert [line(first), line(first)] == ["asks", "has it"]
    second = python(code, tmp_path / "rows")
    assert line(second) == "asks"
    assert second.stderr is not None
    said = second.stderr.readline()
    assert said == f"Another process writes to {tmp_path / 'rows'}; waiting for it.\n"
    assert second.poll() is None  # It waits for the first one.

    first.kill()
    first.wait()

    assert line(second) == "has it"
    second.communicate("")
    with exclusive(tmp_path / "rows"):
        pass


def test_a_fingerprint_changes_with_an_edit_that_keeps_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before, stat = fingerprint(path), path.stat()

    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert fingerprint(path) != before


def test_digests_that_older_code_kept_are_used(tmp_path: Path) -> None:
    path, cache = tmp_path / "weights.safetensors", tmp_path / "cache"
    path.write_bytes(b"weights")
    stat = path.stat()
    facts = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    cache.mkdir()
    (cache / "encoder-file-digests.json").write_text(json.dumps({key: "0" * 64}))

    assert digest_files([path], cache=cache) == "0" * 64
    assert digest_files([path]) == hashlib.sha256(b"weights").hexdigest()


def test_too_little_space_is_said_with_both_numbers_and_what_to_do(tmp_path: Path) -> None:
    require_space(tmp_path / "new", 1, "A build")

    with pytest.raises(StorageError) as caught:
        require_space(tmp_path / "new", 10**18, "A build")

    assert str(caught.value).startswith(f"A build needs 1000000000.00 GB in {tmp_path / 'new'}, and ")
    assert "CCASSETS_STORAGE" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(StorageError, match=r"a\.txt may not be written"):
            write_text(tmp_path / "a.txt", "text")
        with pytest.raises(StorageError, match="may not be written"), exclusive(tmp_path / "rows"):
            pass
    finally:
        tmp_path.chmod(0o755)


_ON_A_DISK_WITHOUT_LOCKS = """
import sys
from pathlib import Path
import ccassets.database.hdf5
import ccassets.h5.growing_file
from ccassets.errors import StorageError
from ccassets.extraction.shard_locks import ShardLocks
from ccassets.files import exclusive, shared, write_text
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.run_locks import fail_dead_runs, hold_run_lock
from ccassets_tests.campaigns.refusals import FAULTS

folder = Path(sys.argv[1])
(folder / "1.lock").touch()

def home():
    with dagster_instance():
        pass

def using(manager):
    with manager:
        pass

next(fault for fault in FAULTS if fault.name == sys.argv[2]).start()
for use in (
    lambda: using(exclusive(folder)),
    lambda: using(shared(folder)),
    lambda: using(hold_run_lock(folder, "2")),
    lambda: fail_dead_runs(None, folder),
    lambda: write_text(folder / "a.txt", "a"),
    home,
):
    try:
        use()
    except StorageError as error:
        print(error.transient, error)
"""


@pytest.mark.skipif(not AVAILABLE, reason="needs Linux's seccomp")
@pytest.mark.parametrize(("name", "transient"), [("ENOSYS", False), ("EOPNOTSUPP", False), ("ENOLCK", True)])
def test_a_file_system_that_does_not_lock_is_said_with_what_to_do(tmp_path: Path, name: str, transient: bool) -> None:
    process = python(_ON_A_DISK_WITHOUT_LOCKS, tmp_path, f"{name} while locking")
    said, errors = process.communicate()
    lines = said.splitlines()
    assert len(lines) == 6, errors
    for text in lines:
        assert text.startswith(f"{transient} {os.environ['CCASSETS_HOME'] if text == lines[-1] else tmp_path}")
        assert "Its file system does not lock files" in text
        assert "flock" in text


def test_the_lock_of_another_users_run_is_theirs(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nimport ccassets.orchestration.run_locks as locks\n"
        "os.chdir(sys.argv[1])\nos.setuid(65534)\nprint(locks.fail_dead_runs(None, Path()))"
    )
    if os.getuid():
        pytest.skip("only root can become another user")
    tmp_path.chmod(0o755)
    (tmp_path / "1.lock").touch(0o600)
    assert python(code, tmp_path).communicate()[0].strip() == "[]"
