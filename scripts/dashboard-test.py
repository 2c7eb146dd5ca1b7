#!/usr/bin/env python3
"""Makes a test of packaging/grafana/dashboard.json for "promtool test rules".

    scripts/dashboard-test.py > TEST.json

promtool reads it, since JSON is YAML. Of the series of packaging/grafana/dashboard_series.json, two agents' of which one receives
a standby, each query of the dashboard must make a line, and have every label that its legend names.
"""

import json
import re
import sys
from pathlib import Path

GRAFANA = Path(__file__).resolve().parent.parent / "packaging" / "grafana"
# what Grafana puts in
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "$directory": ".*"}
AT = "50m"


def filled(query):
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    if "$" in query:
        sys.exit(f"dashboard-test: unknown variable in {query}")
    return query


def alternatives(query):
    """What "or" separates: each must find something, since a 0 in place of nothing hides what finds nothing."""
    part = ""
    for piece in query.split(" or "):
        part = f"{part} or {piece}" if part else piece
        if part.count("(") == part.count(")"):
            yield part
            part = ""


def case(expression, value):
    return {"expr": expression, "eval_time": AT, "exp_samples": [{"labels": "{}", "value": value}]}


def of_panel(panel):
    for target in panel.get("targets", []):
        query = filled(target["expr"])
        for part in alternatives(query):
            yield case(f"count({part}) > bool 0", 1)
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            # those of which the label is empty, or missing
            yield case(f"count(({query}) and on ({label}) vector(1)) or vector(0)", 0)


def of_variable(variable):
    values = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
    if not values:
        sys.exit(f"dashboard-test: {variable['query']} is no label_values(METRIC, LABEL)")
    query, label = filled(values[1]), values[2]
    yield case(f"count({query} unless on ({label}) vector(1)) > bool 0", 1)


def main():
    dashboard = json.loads((GRAFANA / "dashboard.json").read_text())
    series = json.loads((GRAFANA / "dashboard_series.json").read_text())
    cases = [case for panel in dashboard["panels"] for case in of_panel(panel)]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            cases.extend(of_variable(variable))
    if len(cases) < 20:
        sys.exit(f"dashboard-test: {len(cases)} cases only")
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": cases,
    }
    json.dump({"evaluation_interval": "1m", "tests": [test]}, sys.stdout, indent=1)


main()
