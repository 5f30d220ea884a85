"""Look the exact versions of a requirements file up among known vulnerabilities, by pip-audit and the OSV data base.

    python scripts/check_vulnerabilities.py constraints.txt [options of pip-audit, such as --ignore-vuln ID]

Ends with 1 where a version is vulnerable. Without advisory data, as without a network, it says "not checked" and ends
with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap


def main(requirements: str, *options: str) -> int:
    """Print what pip-audit found, a line for each vulnerability, and return the exit status."""
    words = ["--requirement", requirements, "--no-deps", "--disable-pip", "--vulnerability-service", "osv"]
    quiet = ["--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", *words, *quiet, *options]
    done = _run(command)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        if wrong := _run([*command, "--dry-run"]).returncode:  # a wrong option, or a file that it cannot read
            print(done.stderr, file=sys.stderr, end="")
            return wrong
        last = textwrap.shorten(next(iter(done.stderr.strip().splitlines()[-1:]), "pip-audit said nothing"), 100)
        print(f"{requirements}: not checked for known vulnerabilities ({last})")
        return 0
    found = [(package, one) for package in packages for one in package.get("vulns", ())]
    for package, one in found:
        fixed = ", ".join(one["fix_versions"]) or "no version"
        print(f"{requirements}: {package['name']} {package['version']} is vulnerable ({one['id']}); fixed in {fixed}")
    for package in packages:
        if "skip_reason" in package:
            print(f"{requirements}: {package['name']}: not checked ({package['skip_reason']})")
    print(f"{requirements}: {len(packages)} packages looked up, {len(found)} known vulnerabilities")
    return int(bool(found))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
