"""The CPU image under what an operator takes away from a container: docs/image.md says what it needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from containers import CPU, docker, write_base

USER = "12345:12345"  # of whom the image knows nothing

NO_NETWORK = ["--network", "none"]
READ_ONLY = ["--read-only", "--tmpfs", "/tmp"]
NAMELESS = ["--user", USER, "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
# A container always has HOME: env, the image's entry point, takes it away.
HOMELESS = ["-u", "HOME"]

CONFINED: dict[str, tuple[list[str], list[str]]] = {
    "no network": (NO_NETWORK, []),
    "read-only": (READ_ONLY, []),
    "nameless": (NAMELESS, HOMELESS),
    "all": ([*NO_NETWORK, *READ_ONLY, *NAMELESS], HOMELESS),
}

ASK = """
import sys, urllib.request
body = sys.stdin.buffer.read() or None
request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "image/jpeg"})
answer = urllib.request.urlopen(request)
print(answer.status, answer.read().decode())
"""


@pytest.fixture(params=list(CONFINED))
def confinement(request: pytest.FixtureRequest) -> tuple[list[str], list[str]]:
    """Options of `docker run`, and what comes before the command."""
    return CONFINED[request.param]


@contextmanager
def running(options: list[str], *command: str) -> Iterator[str]:
    """The name of a container."""
    started = docker("run", "-d", *options, CPU, *command)
    assert started.returncode == 0, started.stderr
    name = started.stdout.strip()
    try:
        yield name
    finally:
        docker("rm", "-f", name)


def ask(name: str, path: str, body: bytes = b"") -> str:
    """Status and body of the answer to a request made in the server's container; empty for a refusal."""
    return docker("exec", "-i", name, "python", "-c", ASK, f"http://127.0.0.1:8080{path}", data=body).stdout


def assert_nothing_is_written_beside(name: str, *mounts: str) -> None:
    """Nothing but the places of mounts is new in a container's file system."""
    changed = {line.split()[1] for line in docker("diff", name).stdout.splitlines()}
    assert changed <= {"/opt", *mounts}


def test_training_then_serving(confinement: tuple[list[str], list[str]], tmp_path: Path) -> None:
    options, before = confinement
    write_base(tmp_path)
    owner = USER if "--user" in options else "0:0"
    assert docker("run", "--rm", "-v", f"{tmp_path}:/opt/ml", CPU, "chown", "-R", owner, "/opt/ml").returncode == 0

    with running([*options, "-v", f"{tmp_path}:/opt/ml"], *before, "train") as name:
        code = docker("wait", name).stdout
        log = docker("logs", name)
        assert (code, log.stderr) == ("0\n", ""), log.stdout + log.stderr
        assert "WARNING" not in log.stdout
        assert "Training finished: " in log.stdout
        assert_nothing_is_written_beside(name, "/opt/ml")
    assert f"{(tmp_path / 'model' / 'model_algo_1-0000.params').stat().st_uid}" == owner.split(":")[0]

    photo = (tmp_path / "input" / "data" / "validation" / "validation-0000.jpg").read_bytes()
    with running([*options, "-v", f"{tmp_path}/model:/opt/ml/model:ro"], *before, "serve") as name:
        while ask(name, "/ping") != "200 \n":
            assert docker("inspect", "-f", "{{.State.Running}}", name).stdout == "true\n", docker("logs", name)
        assert ask(name, "/invocations", photo).startswith('200 {"prediction": [[')
        assert "WARNING" not in docker("logs", name).stdout
        assert docker("exec", name, "sh", "-c", "cat /proc/[0-9]*/maps | grep -c libmxnet").stdout == "0\n"
        assert_nothing_is_written_beside(name, "/opt/ml", "/opt/ml/model")


@pytest.mark.parametrize("command", ["train", "serve"])
def test_nowhere_for_temporary_files(command: str) -> None:
    done = docker("run", "--rm", "--read-only", CPU, command)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "ClientError: There is no directory for temporary files that can be written; give the container one, as docker "
        "run's --tmpfs /tmp does.\n"
    )
