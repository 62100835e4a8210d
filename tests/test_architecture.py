"""The source tree keeps the rules of ``tests/harness/architecture_rules.py``, and each rule is able to fail."""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness import architecture_rules as rules
from tests.harness.source_tree import REPOSITORY, SourceTree

KNOWN_BREACHES: Final[dict[str, str]] = {}
"""``rule: breach`` as reported, or its start → why it is tolerated for now. An entry whose breach is gone fails the test."""

_DOC: Final = '"""What it is for. Called by the daemon."""\n'


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_repository_keeps(rule: rules.Rule) -> None:
    known = {breach for breach in KNOWN_BREACHES if breach.startswith(f"{rule.__name__}: ")}
    found = {f"{rule.__name__}: {breach}" for breach in rule(SourceTree.of_repository())}
    new = {breach for breach in found if not breach.startswith(tuple(known))}
    assert not new, "\n".join([rule.__doc__ or "", *sorted(new)])
    gone = {start for start in known if not any(breach.startswith(start) for breach in found)}
    assert not gone, "tolerated, but gone: remove from KNOWN_BREACHES:\n" + "\n".join(sorted(gone))


_TODO: Final = "TO" + "DO"

# Rule → snippets, each of which alone breaks it.
_BREACHES: Final[dict[rules.Rule, list[dict[str, str]]]] = {
    rules.cores_are_pure: [
        {"azure_sink/core/plan.py": "import time"},
        {"azure_sink/core/plan.py": "from os import path"},
        {"azure_sink/core/plan.py": "def f():\n    import aiohttp.web"},
        {"azure_sink/core/plan.py": "from replication import disk", "replication/disk.py": "import pathlib"},
        {
            "azure_sink/core/plan.py": "from replication.a import x",
            "replication/a.py": "from . import b",
            "replication/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import socket",
        },
        {"azure_sink/core/plan.py": "import datetime\nstamp = datetime.datetime.now(datetime.UTC)"},
        {"azure_sink/core/__init__.py": "import random"},
        {"azure_sink/core/plan.py": "import importlib\nclock = importlib.import_module('time')"},
        {"azure_sink/core/plan.py": "from importlib import import_module as get"},
        {"azure_sink/core/plan.py": "folder = __import__('os').getcwd()"},
        {"azure_sink/core/plan.py": "import builtins"},
        {"azure_sink/core/plan.py": "def f(path):\n    with open(path) as file:\n        return file.read()"},
        {"azure_sink/core/plan.py": "read = open"},
        {"azure_sink/core/plan.py": "import io\nfile = io.open('x')"},
        {"azure_sink/core/plan.py": "exec('import time')"},
        {"azure_sink/core/plan.py": "import numpy as np\nchance = np.random.default_rng()"},
        {"azure_sink/core/plan.py": "from numpy.random import default_rng"},
        {"azure_sink/core/plan.py": "from numpy import random"},
        {"azure_sink/core/plan.py": "from replication import disk", "replication/disk.py": "def f(x):\n    open(x)"},
    ],
    rules.daemons_are_independent: [
        {"process_server/spool.py": "import config_server.store"},
        {"process_server/spool.py": "from mobility_agent import uplink"},
        {"replication/frames.py": "from process_server.spool import Spool"},
    ],
    rules.product_stands_alone: [
        {"replication/frames.py": "from tests.harness import fake"},
        {"azure_sink/cli.py": "import deploy.demo"},
    ],
    rules.imports_are_acyclic: [
        {"replication/a.py": "from replication import b", "replication/b.py": "from replication.a import thing"},
        {
            "replication/a.py": "import replication.b",
            "replication/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from replication.c import C",
            "replication/c.py": "def f():\n    from . import a",
        },
    ],
    rules.rooms_are_layered: [
        {
            "config_server/api/servers.py": "from config_server.portal import pages",
            "config_server/api/jobs.py": "",
            "config_server/portal/pages.py": "from config_server.api import jobs",
        },
        {
            "config_server/api/servers.py": "from config_server import config",
            "config_server/api/jobs.py": "",
            "config_server/config.py": "from config_server.api import jobs",
        },
        {"config_server/api/servers.py": "from config_server import daemon", "config_server/daemon.py": ""},
        {"config_server/core/plan.py": "from config_server.api import servers", "config_server/api/servers.py": ""},
    ],
    rules.modules_are_introduced: [
        {"replication/frames.py": "x = 1"},
        {"replication/frames.py": '"""Frames."""'},
        {"tests/unit/test_frames.py": "x = 1"},
    ],
    rules.files_are_short: [{"tests/harness/long.py": "x = 1\n" * (rules.MAX_LINES + 1)}],
    rules.names_say_something: [
        {"replication/utils.py": ""},
        {"azure_sink/core/disk_helpers.py": ""},
        {"azure_sink/manager/lease.py": ""},
        {"azure_sink/lease.py": "class LeaseManager: ..."},
    ],
    rules.errors_are_not_swallowed: [
        {"azure_sink/lease.py": "def f():\n    try:\n        g()\n    except Exception:\n        log()"},
        {"azure_sink/lease.py": "try:\n    g()\nexcept:\n    pass"},
        {"azure_sink/lease.py": "try:\n    g()\nexcept Exception:\n    if x:\n        raise\n    log()"},
        {"azure_sink/lease.py": "try:\n    g()\nexcept (OSError, BaseException) as error:\n    print(error)"},
        {"azure_sink/lease.py": "try:\n    g()\nexcept Exception:  # noqa: BLE001\n    pass"},
        {"azure_sink/lease.py": "import builtins\ntry:\n    g()\nexcept builtins.Exception:\n    pass"},
        {"azure_sink/lease.py": "import contextlib\nwith contextlib.suppress(Exception):\n    g()"},
        {"azure_sink/lease.py": "from contextlib import suppress\nwith suppress(OSError, BaseException):\n    g()"},
        {
            "azure_sink/lease.py": "from contextlib import suppress as quiet\nwith quiet(*(OSError, Exception)):\n    g()"
        },
    ],
    rules.nothing_is_left_undone: [
        {"azure_sink/lease.py": f"# {_TODO}: later"},
        {"docs/operations/index.md": f"{_TODO}(me) later"},
    ],
    rules.no_machine_is_named: [
        {"docs/install.md": "see https://pypi" + ".org/simple"},
        {"deploy/sources.txt": "deb http://ftp.de.debian" + ".org/debian bookworm"},
        {"Makefile": "PYTHON = /home" + "/me/python"},
    ],
}


def test_every_rule_has_a_snippet_that_breaks_it() -> None:
    assert set(_BREACHES) == set(rules.RULES)


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        pytest.param(rule, files, id=f"{rule.__name__}-{n}")
        for rule, cases in _BREACHES.items()
        for n, files in enumerate(cases)
    ],
)
def test_rule_can_fail(rule: rules.Rule, files: dict[str, str]) -> None:
    assert list(rule(SourceTree(files)))


def test_rules_accept_a_tree_that_keeps_them() -> None:
    files = {
        "replication/errors.py": _DOC,
        "azure_sink/__init__.py": '"""The sink."""',
        "azure_sink/__main__.py": _DOC + "from azure_sink import cli",
        "azure_sink/cli.py": _DOC + "from azure_sink import daemon\nfrom azure_sink.config import Settings",
        "azure_sink/config.py": _DOC + "class Settings: ...",
        "azure_sink/daemon.py": _DOC
        + "import os\nfrom azure_sink.writer import loop\nfrom azure_sink.blobs import server",
        "azure_sink/core/retention.py": _DOC + "import datetime, math\nfrom replication.errors import X",
        "azure_sink/writer/loop.py": _DOC
        + "import time\nfrom azure_sink.core import retention\nfrom azure_sink.writer import lease",
        "azure_sink/writer/lease.py": _DOC + "try:\n    f()\nexcept Exception:\n    undo()\n    raise",
        "azure_sink/blobs/server.py": _DOC
        + "try:\n    f()\nexcept Exception:  # the client gets to know\n    answer()",
        "tests/unit/test_loop.py": '"""The loop."""\nfrom azure_sink.writer import loop\nfrom process_server import x',
        "docs/architecture.md": f"{_TODO}(#12): say more",
    }
    assert [breach for rule in rules.RULES for breach in rule(SourceTree(files))] == []


def test_repository_tree_holds_what_it_should() -> None:
    tree = SourceTree.of_repository()
    assert {"replication.errors", "replication.service.https", "tests.test_architecture"} <= tree.modules.keys()
    assert {
        "Makefile",
        "README.md",
        "requirements.lock",
        ".ci/run",
        "deploy/setup/debian-packages.txt",
    } <= tree.files.keys()
    assert not [path for path in tree.files if path.startswith((".venv", ".git/"))]
    assert tree.modules["replication.service"].is_package
    assert (REPOSITORY / "pyproject.toml").is_file()
