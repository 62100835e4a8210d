"""Prometheus rules and dashboard rest on metrics and labels that exist, and send nobody to a page that does not.

``docs/operations/metrics.md`` is what they are held against; ``tests/test_documentation.py`` holds that page against the code. Whether
Prometheus takes them, and raises what they are meant to raise, its own ``promtool`` says (``tests/harness/promtool.py``).
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from config_server.core.alert_catalogue import CATALOGUE
from tests.harness.documentation import anchor, sections
from tests.harness.promtool import promtool
from tests.harness.source_tree import REPOSITORY

MONITORING: Final = REPOSITORY / "deploy" / "monitoring"
RULES: Final[dict[str, Any]] = yaml.safe_load((MONITORING / "prometheus-rules.yaml").read_text())
RULE_TESTS: Final[dict[str, Any]] = yaml.safe_load((MONITORING / "prometheus-rules-test.yaml").read_text())
DASHBOARD: Final[dict[str, Any]] = json.loads((MONITORING / "grafana-dashboard.json").read_text())
ALERTING: Final[list[dict[str, Any]]] = [rule for group in RULES["groups"] for rule in group["rules"]]
OF_EVERY_DAEMON: Final = {"up", "process_cpu_seconds_total"}
"""Metrics that are not Blockferry's own: of the collection, and of a process."""
OF_PROMETHEUS: Final = {"instance", "job", "le"}
"""Labels that a metric gets when it is collected, or as a histogram."""


def _metrics() -> dict[str, set[str]]:
    """Every metric on the page → its labels."""
    found = {}
    for line in (REPOSITORY / "docs/operations/metrics.md").read_text().splitlines():
        row = re.fullmatch(r"\| `(blockferry_\w+)` \|([^|]*)\|.*", line)
        if row:
            found[row[1]] = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", row[2])))
    assert len(found) > 50
    return found


METRICS: Final = _metrics()


def _expressions() -> Iterator[tuple[str, str, str]]:
    """Where, the expression, and the text that names its labels."""
    for rule in ALERTING:
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target["legendFormat"]


def _metric(name: str) -> str:
    return name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize(("where", "expression", "text"), list(_expressions()), ids=lambda text: text[:30])
def test_every_expression_asks_for_metrics_and_labels_that_exist(where: str, expression: str, text: str) -> None:
    names = {_metric(name) for name in re.findall(r"\bblockferry_\w+", expression)}
    names |= OF_EVERY_DAEMON & set(re.findall(r"\b[a-z_]+\b", expression))
    assert names, f"{where} asks for nothing"
    assert names <= METRICS.keys() | OF_EVERY_DAEMON, f"{where}: no such metric: {names - METRICS.keys()}"
    labels = OF_PROMETHEUS.union(*(METRICS.get(name, set()) for name in names))
    used = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!=|=~|!~)\s*\"", expression))
    for by in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expression):
        used |= set(re.split(r",\s*", by))
    assert used <= labels, f"{where}: no such label: {used - labels}"
    shown = set(re.findall(r"\$labels\.(\w+)", text)) | set(re.findall(r"\{\{(\w+)\}\}", text))
    aggregated = re.findall(r"\b(?:sum|max|min) by \(([^)]*)\)", expression)
    left = set(re.split(r",\s*", aggregated[0])) if aggregated else labels
    assert shown <= left, f"{where} shows {shown - left}, which is not left of it"
    assert expression.count("(") == expression.count(")")


OF_ONE_SERVER: Final = {
    "blockferry_leader",
    "blockferry_leader_term",
    "blockferry_reconciler_age_seconds",
    "blockferry_state_free_bytes",
    "blockferry_store_reachable",
    "blockferry_webhook_attempts_total",
    "blockferry_process_server_changes_total",
}
"""What each configuration server tells of itself; all else it tells of the whole site, and every other one tells the same."""


@pytest.mark.parametrize(("where", "expression", "_text"), list(_expressions()), ids=lambda text: text[:30])
def test_what_several_configuration_servers_tell_alike_is_counted_once(where: str, expression: str, _text: str) -> None:
    page = (REPOSITORY / "docs/operations/metrics.md").read_text()
    section = page.partition("## config-server\n")[2].partition("\n## ")[0]
    of_the_site = METRICS.keys() & set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) - OF_ONE_SERVER
    assert {"blockferry_alerts", "blockferry_items", "blockferry_webhook_waiting"} <= of_the_site
    if of_the_site & set(re.findall(r"\bblockferry_\w+", expression)):
        is_once = re.search(r"\band on \(instance\) blockferry_leader == 1", expression)
        is_once = is_once or re.match(r"(max( by \(server\))?|min by \(role, name\)|absent) ?\(", expression)
        assert is_once, f"{where} counts it once for each configuration server"


def test_every_rule_has_a_severity_a_summary_and_a_remedy_that_is_written() -> None:
    assert len({rule["alert"] for rule in ALERTING}) == len(ALERTING)
    for rule in ALERTING:
        assert rule["labels"]["severity"] in ("warning", "critical"), rule
        assert rule["annotations"].keys() == {"summary", "description", "remedy"}, rule
        page, _, fragment = rule["annotations"]["remedy"].partition("#")
        text = (REPOSITORY / page).read_text()
        headings = {anchor(section.headings[-1]) for section in sections(page, text) if section.headings}
        wanted = CATALOGUE.keys() if "$labels.code" in fragment else {fragment} - {""}
        assert wanted <= headings, rule["annotations"]["remedy"]


def test_every_rule_that_the_unit_tests_name_exists() -> None:
    named = {case["alertname"] for test in RULE_TESTS["tests"] for case in test["alert_rule_test"]}
    assert named <= {rule["alert"] for rule in ALERTING}
    assert RULE_TESTS["rule_files"] == ["prometheus-rules.yaml"]


def test_panels_have_their_own_numbers_and_do_not_lie_on_each_other() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))


def _promtool(*arguments: str | Path) -> str:
    program = promtool()
    assert program is not None
    done = subprocess.run(
        [program, *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.requires("promtool")
def test_prometheus_takes_the_rules_and_they_raise_what_their_unit_tests_expect() -> None:
    assert f"SUCCESS: {len(ALERTING)} rules found" in _promtool("check", "rules", "prometheus-rules.yaml")
    assert "SUCCESS" in _promtool("test", "rules", "prometheus-rules-test.yaml")


@pytest.mark.requires("promtool")
def test_prometheus_takes_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__(rate_)?interval", "5m", expression)}
        for number, expression in enumerate(expressions)
    ]
    assert not any("$" in rule["expr"] for rule in rules), "a variable that is not known here"
    path = tmp_path / "dashboard.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in _promtool("check", "rules", path)
