"""Locks against published advisories, by pip-audit, which must be on the PATH; `make audit` runs it.

    python docker/audit.py LOCK...

Exit code 0: no finding but accepted ones (docker/accepted-advisories.toml); 1: findings; 2: no finding, but not all
packages could be looked up.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("accepted-advisories.toml")
SERVICES = ("pypi", "osv")  # the first that knows any of a lock's packages


def main(locks: list[str]) -> int:
    accepted = {each["id"]: each["reason"] for each in tomllib.loads(ACCEPTED.read_text()).get("accepted", [])}
    findings = unknown = 0
    for lock in locks:
        packages = look_up(lock)
        if packages is None:
            print(f"{lock}: no advisory service answers ({', '.join(SERVICES)}); nothing was checked from here on.")
            unknown += 1
            break
        missing = [each["name"] for each in packages if "skip_reason" in each]
        found = [(each, finding) for each in packages for finding in each.get("vulns", [])]
        open_ones = [line(*each) for each in found if not names(each[1]) & accepted.keys()]
        for text in open_ones:
            print(f"{lock}: {text}")
        for each, finding in found:
            for name in sorted(names(finding) & accepted.keys()):
                print(f"{lock}: accepted: {line(each, finding)}: {accepted[name]}")
        if missing:
            print(f"{lock}: not known to the service: {', '.join(missing)}.")
        print(f"{lock}: {len(packages) - len(missing)} packages looked up, {len(open_ones)} findings.")
        findings, unknown = findings + len(open_ones), unknown + len(missing)
    return 1 if findings else 2 if unknown else 0


def look_up(lock: str) -> list[dict[str, Any]] | None:
    """The packages of a lock with their advisories, as pip-audit tells them; None when no service answers."""
    for service in SERVICES:
        command = ["pip-audit", "-r", lock, "--disable-pip", "-s", service, "-f", "json", "--progress-spinner", "off"]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        except ValueError:  # it failed, and says so on standard error at length
            continue
        if any("skip_reason" not in each for each in packages):
            return packages
    return None


def names(finding: dict[str, Any]) -> set[str]:
    """What an advisory is called: one has a name in each database."""
    return {finding["id"], *finding["aliases"]}


def line(package: dict[str, Any], finding: dict[str, Any]) -> str:
    mended = ", ".join(finding["fix_versions"])
    return (
        f"{package['name']} {package['version']}: {finding['id']} ({f'mended in {mended}' if mended else 'not mended'})"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
