"""Write the tables of docs/peers.md: `python tests/peers/report.py` runs the tests, and what they
found goes into the sections of the peers that are installed. The others stay as they are.
"""

import datetime
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs/peers.md"
PEERS = ("onnxruntime", "tensorflow", "paddle", "tinygrad")


class Recorder:
    """A plugin of pytest: what the rows have found, and how many other tests passed."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.others = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" or not report.passed:
            return
        found = [value for name, value in report.user_properties if name == "row"]
        self.rows += [(operator, numbers) for _, operator, numbers in found]
        self.others += not found


def table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    lines = [
        "| operator | configurations | values | indices | gradients |",
        "| --- | ---: | --- | --- | --- |",
    ]
    for operator, found in rows:
        count = f"{found['configurations']} ({found['calls']} calls)"
        if found["different"]:
            row = [operator, count, f"differ in {found['different']}: another rule", "", ""]
        else:
            row = [
                operator,
                count,
                _accuracy(found["value_bound"], found["value_error"]),
                "equal" if found["indices"] else "",
                _accuracy(found["gradient_bound"], found["gradient_error"])
                if found["gradients"]
                else "",
            ]
        lines.append("|".join(["", *(f" {cell}".rstrip() + " " for cell in row), ""]))
    return "\n".join(lines)


def _accuracy(bound: float, error: float) -> str:
    if not bound or not error:
        return "equal"
    return f"{error:.1f} eps (at most {bound:g})"


def main() -> int:
    """Run the tests of each peer in a process of its own, and write its section."""
    chosen = sys.argv[1:] or [name for name in PEERS if importlib.util.find_spec(name)]
    if not chosen:
        print(f"none of {', '.join(PEERS)} is installed")
        return 1
    if len(chosen) > 1:  # some of them cannot live in one process
        return max(subprocess.call([sys.executable, __file__, name]) for name in chosen)
    (name,) = chosen
    recorder = Recorder()
    status = pytest.main(["-q", str(FOLDER / f"test_peer_{name}.py")], plugins=[recorder])
    if status:
        return int(status)
    distribution = importlib.metadata.packages_distributions()[name][0]
    version = importlib.metadata.version(distribution)
    calls = sum(found["configurations"] for _, found in recorder.rows)
    text = (
        f"<!-- peers: {name} -->\n"
        f"Version {version}, jax {importlib.metadata.version('jax')}, {datetime.date.today()}."
        f" {calls} random configurations. Further tests, of published examples and of single"
        f" differences: {recorder.others}.\n\n{table(recorder.rows)}\n<!-- end -->"
    )
    pattern = rf"<!-- peers: {name} -->.*?<!-- end -->"
    page = PAGE.read_text()
    assert re.search(pattern, page, re.DOTALL), f"{PAGE} has no section of {name}"
    PAGE.write_text(re.sub(pattern, lambda _: text, page, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
