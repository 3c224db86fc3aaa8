"""What metrics the program has and which labels, as its sources say; and what expressions of PromQL ask for."""

import re

from conftest import ROOT

# What Prometheus and its discovery put on every series.
SCRAPED = {"namespace", "pod", "job", "instance", "le"}


def described() -> set[str]:
    """Those that say in `/metrics` what they are."""
    return set(re.findall(r'\(\s*"([a-z_]+)",', (ROOT / "crates/gateway/src/metric_help.rs").read_text()))


def sources() -> list[str]:
    """The files of all crates."""
    return [path.read_text() for path in sorted((ROOT / "crates").rglob("src/**/*.rs"))]


def labels() -> set[str]:
    """All that any metric has."""
    found = set(SCRAPED)
    for text in sources():
        found |= set(re.findall(r'"([a-z_]+)"\s*=>', text))
        found |= set(re.findall(r'Label::\w+\(\s*"([a-z_]+)"', text))
        found |= set(re.findall(r'\(\s*"([a-z_]+)",\s*[a-z]', text))
    return found


def asked(expression: str) -> set[str]:
    """The metrics of an expression, by the names under which they are counted."""
    named = set(re.findall(r"\b([a-z_]+)\{", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


def selected(expression: str) -> set[str]:
    """The labels of an expression."""
    found = set()
    for selector in re.findall(r"\{([^}]*)\}", expression):
        found |= set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector))
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression):
        found |= {label.strip() for label in group.split(",")}
    return found
