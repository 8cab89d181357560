"""deploy/: nothing in it names a metric, a label or a key that does not exist."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swapfs.config import model
from swapfs.config.options import BY_KEY
from swapfs.errors import ConfigError
from swapfs.server.metric_table import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
EXAMPLE = DEPLOY / "swapfs.toml.example"
DOCS = ROOT / "docs" / "metrics.md"

METRIC_NAME = re.compile(r"\bswapfs_[a-z0-9_]+")
SELECTOR = re.compile(r"\b(swapfs_[a-z0-9_]+)\{([^}]*)\}")
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
COMMENTED_KEY = re.compile(r"# ([a-z-]+ = .*)")

SERIES = {
    name: {"name", "instance", "job", *metric.labels, *(["le"] if "_bucket" in name else [])}
    for metric in METRICS
    for name in (
        [f"{metric.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")]
        if metric.kind == "histogram"
        else [metric.name]
    )
}


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def queries() -> list[str]:
    alerts = re.findall(r"expr: (?:>-\n)?((?:.|\n(?=          ))*)", ALERTS.read_text())
    return [*alerts, *expressions(json.loads(DASHBOARD.read_text()))]


@pytest.mark.parametrize("path", [ALERTS, DASHBOARD], ids=lambda path: path.name)
def test_every_metric_that_is_used_is_exported(path: Path) -> None:
    used = set(METRIC_NAME.findall(path.read_text()))
    assert len(used) > 10
    assert used - set(SERIES) == set()


def test_every_metric_in_the_docs_is_exported() -> None:
    used = set(METRIC_NAME.findall(DOCS.read_text()))
    exported = set(SERIES) | {metric.name for metric in METRICS}
    assert used - exported == set()


def test_queries_use_only_labels_that_the_metric_has() -> None:
    checked = 0
    assert len(queries()) == len(list(expressions(json.loads(DASHBOARD.read_text())))) + (
        ALERTS.read_text().count("- alert: ")
    )
    for query in queries():
        for name, matchers in SELECTOR.findall(query):
            assert set(LABEL.findall(matchers)) <= SERIES[name], query
            checked += 1
        grouped = {word.strip() for words in GROUPING.findall(query) for word in words.split(",")}
        known = set.union(*(SERIES[name] for name in METRIC_NAME.findall(query)))
        assert grouped <= known, query
        assert query.count("(") == query.count(")")
        assert query.count("{") == query.count("}")
    assert checked > 20


def test_legends_use_only_labels_that_the_query_keeps() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for target in targets:
        wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        names = METRIC_NAME.findall(target["expr"])
        kept = set.intersection(*(SERIES[name] for name in names))
        assert wanted <= kept, target


def test_dashboard_keeps_hosts_apart() -> None:
    """Every host's instance is named swapfs unless somebody gave it another name."""
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {found["name"]: found for found in dashboard["templating"]["list"]}
    assert "$instance" in variables["name"]["query"]["query"]
    assert variables["instance"]["query"]["query"] == "label_values(swapfs_info, instance)"
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            selectors = SELECTOR.findall(query)
            assert len(selectors) == len(METRIC_NAME.findall(query)), query
            for _, matchers in selectors:
                assert {'instance=~"$instance"', 'name=~"$name"'} <= set(matchers.split(", "))
            for grouping in GROUPING.findall(query):
                assert {"instance", "name"} <= set(grouping.split(", ")), query
            assert target["legendFormat"].startswith("{{instance}} {{name}}"), target


def test_every_alert_says_on_which_host() -> None:
    summaries = re.findall(r"summary: (.*)", ALERTS.read_text())
    assert len(summaries) == ALERTS.read_text().count("- alert: ")
    for summary in summaries:
        assert "swapfs {{ $labels.name }} on {{ $labels.instance }}: " in summary
    for query in queries():
        for grouping in re.findall(r"\bby\s*\(([^)]*)\)", query):
            assert {"instance", "name"} <= set(grouping.split(", ")), query


def test_gone_lasts_as_long_as_the_target_does_not_answer() -> None:
    """Neither a window of minutes that ends it by itself, nor one that starts with every scrape."""
    (gone,) = (query for query in queries() if "up == 0" in query)
    days = re.findall(r"last_over_time\(swapfs_swap_active\[(\d+)d\]\) == 1", gone)
    assert [int(count) >= 1 for count in days] == [True]
    assert "and on (job, instance)" in gone, "the label name is not lost, and no other job counts"
    assert not {"offset", "unless", "absent"} & set(re.findall(r"\w+", gone))
    rule = ALERTS.read_text().partition("- alert: SwapfsGone")[2].partition("- alert:")[0]
    for possibility in ("down", "HELD", "ghost", "starved"):
        assert possibility in rule


def test_panels_have_distinct_ids_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_alert_is_complete() -> None:
    alerts = ALERTS.read_text().split("- alert: ")[1:]
    assert len(alerts) >= 10
    for alert in alerts:
        for part in ("expr:", "severity:", "summary:", "description:"):
            assert part in alert, alert
    names = [alert.partition("\n")[0] for alert in alerts]
    assert len(set(names)) == len(names)


# swapfs.toml.example


def uncommented() -> str:
    return "\n".join(
        match.group(1) if (match := COMMENTED_KEY.fullmatch(line)) else line
        for line in EXAMPLE.read_text().splitlines()
    )


@pytest.fixture
def here(tmp_path: Path) -> dict[str, object]:
    """Return what of the example depends on the machine, moved to this test's directory."""
    return {"file": f"{tmp_path}/tier:8M", "pool": "4M", "runtime-dir": str(tmp_path)}


def test_example_shows_every_key_and_no_other() -> None:
    assert set(tomllib.loads(uncommented())) == set(BY_KEY)


def test_example_is_accepted(here: dict[str, object]) -> None:
    loaded = model.load(here, EXAMPLE)
    assert loaded.size_bytes == 2 << 30
    assert loaded.metrics == ("127.0.0.1", 9809)


def test_example_file_is_path_and_size_and_has_room_for_every_page() -> None:
    values = tomllib.loads(EXAMPLE.read_text())
    assert re.fullmatch(r"/var/lib/swapfs/\S+:2G", values["file"])
    assert values["size"] == "2G"
    assert values["pool"] == "512M"


def test_commented_lines_show_the_defaults(tmp_path: Path, here: dict[str, object]) -> None:
    path = tmp_path / "full.toml"
    # explicit places must exist, the default ones are made by "up"; a pool-max is of a pool
    path.write_text(re.sub(r"(?m)^(mountpoint|log-dir|pool-max) = .*$", "", uncommented()))
    assert model.load(here, path) == model.load(here, EXAMPLE)


def test_unknown_key_in_the_example_would_be_noticed(
    tmp_path: Path, here: dict[str, object]
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(EXAMPLE.read_text() + "\npool-size = 1\n")
    with pytest.raises(ConfigError, match="pool-size"):
        model.load(here, path)
