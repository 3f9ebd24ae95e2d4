"""What `make audit` and `make sbom` say of the locks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

LOCK = "docker/requirements-cpu.txt"
CLEAN = {"name": "numpy", "version": "1.23.5", "vulns": []}
UNKNOWN = {"name": "graphviz", "skip_reason": "Dependency not found on PyPI and could not be audited: graphviz (0.8.4)"}


def package(name: str, *aliases: str, mended: str = "") -> dict[str, Any]:
    finding = {"id": "PYSEC-1-1", "fix_versions": mended.split(), "aliases": list(aliases), "description": ""}
    return {"name": name, "version": "4.11.0.86", "vulns": [finding]}


def audit(tmp_path: Path, *packages: dict[str, Any], service: str = "pypi") -> tuple[int, str]:
    """Exit code and output where pip-audit reports these packages by one service, and the other does not answer."""
    (tmp_path / "report.json").write_text(json.dumps({"dependencies": packages, "fixes": []}))
    tool = tmp_path / "pip-audit"
    tool.write_text(f'#!/bin/sh\ncase "$*" in *"-s {service} "*) cat {tmp_path}/report.json ;; *) exit 1 ;; esac\n')
    tool.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "docker/audit.py", LOCK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("service", ["pypi", "osv"])
def test_no_advisory(tmp_path: Path, service: str) -> None:
    assert audit(tmp_path, CLEAN, service=service) == (0, f"{LOCK}: 1 packages looked up, 0 findings.\n")


def test_a_finding(tmp_path: Path) -> None:
    assert audit(tmp_path, CLEAN, UNKNOWN, package("flask", "CVE-1-1", mended="5.0")) == (
        1,
        f"{LOCK}: flask 4.11.0.86: PYSEC-1-1 (mended in 5.0)\n"
        f"{LOCK}: not known to the service: graphviz.\n"
        f"{LOCK}: 2 packages looked up, 1 findings.\n",
    )


def test_an_accepted_finding(tmp_path: Path) -> None:
    assert audit(tmp_path, package("opencv-python", "CVE-2025-53644")) == (
        0,
        f"{LOCK}: accepted: opencv-python 4.11.0.86: PYSEC-1-1 (not mended): it is in the decoder of JPEG 2000, "
        "and only JPEG and PNG are decoded for a request\n"
        f"{LOCK}: 1 packages looked up, 0 findings.\n",
    )


def test_a_package_that_the_service_does_not_know(tmp_path: Path) -> None:
    assert audit(tmp_path, CLEAN, UNKNOWN) == (
        2,
        f"{LOCK}: not known to the service: graphviz.\n{LOCK}: 1 packages looked up, 0 findings.\n",
    )


@pytest.mark.parametrize("service", ["pypi", "none"])
def test_no_service(tmp_path: Path, service: str) -> None:
    """None answers, or one that knows no package at all, as a mirror does."""
    assert audit(tmp_path, UNKNOWN, service=service) == (
        2,
        f"{LOCK}: no advisory service answers (pypi, osv); nothing was checked from here on.\n",
    )


@pytest.mark.skipif(not (ROOT / ".venv-audit" / ".installed").exists(), reason="`make test` sets it up")
def test_bills_of_materials(tmp_path: Path) -> None:
    def make(folder: Path, target: str) -> None:
        folder.mkdir()
        command = ["make", target, f"SBOM={folder}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    make(tmp_path / "one", "sbom")
    make(tmp_path / "two", str(tmp_path / "two" / "sbom-cpu.json"))
    assert (tmp_path / "one" / "sbom-cpu.json").read_bytes() == (tmp_path / "two" / "sbom-cpu.json").read_bytes()
    for variant in ("cpu", "gpu"):
        document = json.loads((tmp_path / "one" / f"sbom-{variant}.json").read_text())
        assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "ssd-algo")
        lock = (ROOT / "docker" / f"requirements-{variant}.txt").read_text()
        listed = {(each["name"], each["version"]): each["purl"] for each in document["components"]}
        assert set(listed) == set(re.findall(r"^(\S+)==(\S+)", lock, re.M))
        assert all(purl == f"pkg:pypi/{name}@{version}" for (name, version), purl in listed.items())
        hashes = {
            each["content"] for part in document["components"] for each in part["externalReferences"][0]["hashes"]
        }
        assert hashes == set(re.findall(r"sha256:(\w+)", lock))
