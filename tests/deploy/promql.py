"""Reads the board, the alert rules, the runbook and the scaler against the program's metrics: `promql.py DEPLOY METRICS`.

METRICS is a JSON object of labels by metric. Every expression must parse; what it names must exist, with the labels
by which it selects and groups.
"""

import json
import pathlib
import re
import sys

import promql_parser as promql
import yaml

deploy = pathlib.Path(sys.argv[1])
METRICS = {name: set(labels) for name, labels in json.loads(pathlib.Path(sys.argv[2]).read_text()).items()}
# What a scrape adds; `namespace` comes from the operator and is empty elsewhere.
SCRAPED = {"job", "instance", "namespace"}


def labels_of(series, where):
    if series == "up":
        return SCRAPED
    for suffix in ("", "_bucket", "_sum", "_count"):
        name = series.removesuffix(suffix) if suffix else series
        if name in METRICS and (suffix == "" or series.endswith(suffix)):
            return METRICS[name] | SCRAPED | ({"le"} if suffix == "_bucket" else set())
    raise AssertionError(f"{where}: there is no metric {series}")


def check(text, where):
    # A parser takes no variables of Grafana: those for times become a time, the others are text in quotes.
    expression = promql.parse(text.replace("$__rate_interval", "5m"))
    selectors, grouped = [], []

    def visit(node):
        if isinstance(node, promql.MatrixSelector):
            selectors.append(node.vector_selector)
        elif isinstance(node, promql.VectorSelector):
            selectors.append(node)
        elif isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            grouped.extend(node.modifier.labels)
        return True

    promql.walk(expression, visit)
    assert selectors, f"{where}: asks for nothing"
    known = set()
    for selector in selectors:
        labels = labels_of(selector.name, where)
        known |= labels
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, f"{where}: {selector.name} has no label {matcher.name}"
    for label in grouped:
        assert label in known, f"{where}: nothing in it has the label {label}"
    return known


def rules():
    text = (deploy / "prometheus/rules.yaml").read_text()
    titles = re.findall(r"^### (\w+)$", (deploy / "RUNBOOK.md").read_text(), re.M)
    names = []
    for rule in (rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]):
        name = rule["alert"]
        names.append(name)
        known = check(rule["expr"], name)
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(rule["annotations"]) == {"summary", "runbook"}, name
        assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{name.lower()}", name
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert label in known, f"{name}: no label {label} to tell"
    assert names == titles, f"alerts and titles of the runbook differ: {set(names) ^ set(titles) or 'their order'}"
    return len(names)


def board():
    board = json.loads((deploy / "grafana/durahub.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)), "two panels with one id"
    variables = {variable["name"] for variable in board["templating"]["list"]}
    count = 0
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            where = f"panel {panel['title']!r}"
            for variable in re.findall(r"\$(\w+)", target["expr"]):
                assert variable in variables or variable == "__rate_interval", f"{where}: ${variable}"
            known = check(target["expr"], where)
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert label in known, f"{where}: no label {label} for the legend"
            count += 1
        assert panel["type"] == "row" or panel["targets"], panel["title"]
    for variable in board["templating"]["list"]:
        for series, label in re.findall(r"label_values\((\w+), (\w+)\)", str(variable["query"])):
            assert label in labels_of(series, f"variable {variable['name']}")
    return count


def scaler():
    scaled = yaml.safe_load((deploy / "keda/workers.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        check(trigger["metadata"]["query"], "keda/workers.yaml")
    # The server itself refuses other names and kinds (tests/reading/scaler.rs).
    external = yaml.safe_load((deploy / "keda/workers-external.yaml").read_text())
    for trigger in external["spec"]["triggers"]:
        names = {"scalerAddress", "taskhubName", "workItemType", "maxConcurrentWorkItemsCount"}
        assert trigger["type"] in ("external", "external-push") and set(trigger["metadata"]) == names, trigger
        assert trigger["metadata"]["workItemType"] in ("Orchestration", "Activity", "Entity"), trigger
        assert int(trigger["metadata"]["maxConcurrentWorkItemsCount"]) > 0, trigger


def samples():
    """A check that cannot fail checks nothing."""
    for bad in ["sum(durahub_ready", "durahub_raedy", 'durahub_ready{hub="x"}', "sum by (hub) (durahub_ready)", "1"]:
        try:
            check(bad, "sample")
        except (AssertionError, ValueError):
            continue
        raise AssertionError(f"taken: {bad}")


samples()
scaler()
counts = rules(), board()
print(f"{counts[0]} rules, {counts[1]} expressions of the board: ok")
