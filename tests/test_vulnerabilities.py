"""`make lint` looks the constraints up among known vulnerabilities, against a stand-in for the data base."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from helpers import ROOT


class Advisories(BaseHTTPRequestHandler):
    """Knows of one hole, in every version of "holed" before 2.0."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        events = [{"introduced": "0"}, {"fixed": "2.0"}]
        hole = {"package": asked["package"], "ranges": [{"type": "ECOSYSTEM", "events": events}]}
        known = {"id": "TEST-1", "modified": "2026-01-01T00:00:00Z", "affected": [hole], "details": "a hole"}
        answer = json.dumps({"vulns": [known]} if asked["package"]["name"] == "holed" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def check(tmp_path):
    with HTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

        def run(text, port=server.server_port):
            (tmp_path / "constraints.txt").write_text(text)
            words = [sys.executable, ROOT / "scripts/check_vulnerabilities.py", "constraints.txt"]
            words += ["--osv-url", f"http://127.0.0.1:{port}/v1/query"]
            done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
            return done.returncode, done.stdout

        yield run
        server.shutdown()


def test_a_vulnerable_version_fails(check):
    assert check("sound==1.0\nholed==1.0\n") == (
        1,
        "constraints.txt: holed 1.0 is vulnerable (TEST-1); fixed in 2.0\n"
        "constraints.txt: 2 packages looked up, 1 known vulnerabilities\n",
    )


def test_sound_versions_pass(check):
    assert check("sound==1.0\n") == (0, "constraints.txt: 1 packages looked up, 0 known vulnerabilities\n")


def test_without_advisory_data_nothing_is_checked_and_nothing_fails(check):
    status, told = check("holed==1.0\n", port=1)
    assert status == 0
    assert told.startswith("constraints.txt: not checked for known vulnerabilities (")


def test_requirements_that_cannot_be_looked_up_fail(check):
    assert check("holed\n") == (1, ""), "no exact version"
    assert check("no requirement at all\n")[0] == 1


def test_the_constraints_are_looked_up_by_make_lint():
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert "scripts/check_vulnerabilities.py constraints.txt" in lint
