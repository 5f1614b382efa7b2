"""Damaged files and killed runs, for as long as is asked for: how many were tried and refused.

    python benchmarks/fuzz.py --minutes 60

It runs the tests that do so for seconds whenever all tests run: model folders, checkpoints of ours and of the papers'
authors, data files of every layout; and training commands, killed at random moments and resumed. Each case is seeded by
its name, so that a longer run begins as a shorter one. Exit code 1 if anything ended other than it should.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import tyro
from _results import write

ROOT = Path(__file__).parents[1]
HOSTILE = [f"tests/test_hostile_{kind}.py" for kind in ("folders", "checkpoints", "data")]
KILLED = ["tests/test_faults.py::test_killed_at_random_moments_it_ends_as_if_it_had_not_been"]


@dataclass(frozen=True)
class Options:
    """For how long."""

    minutes: float = 60.0
    """Time for damaged files, shared by all cases."""
    kills: int = 20
    """How often each training command is killed, after that; 0 leaves it out."""


def main(options: Options) -> int:
    """Test, then write one result file; pytest's exit code."""
    tests = [*HOSTILE, *(KILLED if options.kills > 0 else [])]
    given = {"RESLESS_FUZZ_MINUTES": str(options.minutes), "RESLESS_KILLS": str(options.kills)}
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", *tests, f"--junitxml={report}", "-o", "junit_family=xunit1"]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | given).returncode
        if not report.exists():
            raise SystemExit(f"pytest ended with {code} before its report: its last line tells the case")
        tested = ElementTree.parse(report).iter("testcase")
        cases = [measured(case) for case in tested if case.find("properties") is not None]
    write("fuzz", {"options": asdict(options), "seed": "the name of the case", "cases": cases})
    return code


def measured(case: ElementTree.Element) -> dict[str, Any]:
    """What a test's entry in pytest's report says, with what the test itself recorded."""
    recorded = {item.attrib["name"]: item.attrib["value"] for item in case.iter("property")}
    return {
        "case": case.attrib["name"],
        "seconds": round(float(case.attrib["time"]), 1),
        "passed": case.find("failure") is None and case.find("error") is None,
        **{name: int(value) if value.isdecimal() else value for name, value in recorded.items()},
    }


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
