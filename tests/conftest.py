"""Gathers what the oracle saw, also from several processes (pytest -n), and checks the claims of docs/coverage.json."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from runnel.tools.decoding import limit

STREAMING = Path(__file__).resolve().parent / "streaming"
PARTS = "RUNNEL_RECORD_PARTS"

sys.path.insert(0, str(STREAMING))


@pytest.fixture
def group() -> Iterator[limit.Group]:
    """cgroup v2's memory controller where it is on, else v1's; skips where neither may be used."""
    from runnel.tools.decoding import limit

    try:
        with limit.group("runnel-test") as made:
            yield made
    except limit.NoLimits as error:
        pytest.skip(str(error))


def pytest_configure(config: pytest.Config) -> None:
    """Processes started from here leave their part of the record in one folder."""
    if not hasattr(config, "workerinput") and PARTS not in os.environ:
        os.environ[PARTS] = tempfile.mkdtemp(prefix="runnel-record-")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After all tests of streams: every claim of docs/coverage.json must have been seen."""
    import record

    config = session.config
    parts = Path(os.environ[PARTS])
    if hasattr(config, "workerinput"):
        record.write(parts / f"{config.workerinput['workerid']}.json")
        return
    for part in sorted(parts.glob("*.json")):
        record.merge(part)
        part.unlink()
    parts.rmdir()
    del os.environ[PARTS]
    target = os.environ.get("RUNNEL_COVERAGE")
    if target:
        record.write(Path(target))
    arguments = [Path(str(a).partition("::")[0]).resolve() for a in config.args]
    whole = any(STREAMING.is_relative_to(path) for path in arguments)
    chosen = config.option.keyword or config.option.markexpr or config.option.deselect or config.option.ignore
    if exitstatus != 0 or target or not whole or chosen or os.environ.get("RUNNEL_RUNNERS") or record.OLD_ONNXRUNTIME:
        return
    if lost := record.missing(record.claims()):
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        said = "; ".join(lost[:20])
        reporter.write_line(f"docs/coverage.json claims what no test has seen ({said}); run make coverage.")
        session.exitstatus = 1
