"""What is said of the project in several files agrees: its version, Pythons, checks and rules."""

from __future__ import annotations

import datetime
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def workflow(name: str) -> dict[str, Any]:
    """The jobs of a workflow."""
    jobs: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())["jobs"]
    return jobs


def test_the_citation_and_the_changelog_are_of_the_package_s_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(r"^## \[([\d.]+)\] - (\S+)$", CHANGELOG, flags=re.MULTILINE)
    assert citation["version"] == releases[0][0] == PROJECT["version"]
    assert citation["date-released"] == releases[0][1]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Zhuo", "Wang", "Ma", "Wang"]


def test_the_changelog_is_kept_in_order() -> None:
    first, *releases = re.findall(r"^## \[(.+?)\]", CHANGELOG, flags=re.MULTILINE)
    assert first == "Unreleased"
    numbers = [tuple(map(int, version.split("."))) for version in releases]
    assert numbers == sorted(numbers, reverse=True)
    dates = [
        datetime.date.fromisoformat(date) for date in re.findall(r"^## \[.+\] - (\S+)$", CHANGELOG, re.MULTILINE)
    ]
    assert dates == sorted(dates, reverse=True)
    assert len(dates) == len(releases)
    groups = re.findall(r"^### (.+)$", CHANGELOG, flags=re.MULTILINE)
    assert set(groups) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_version_is_written_down_in_one_place_of_the_code() -> None:
    said = [path for path in (ROOT / "src").rglob("*.py") if PROJECT["version"] in path.read_text()]
    assert said == []
    supported = re.findall(r"^\| ([\d.]+) \| yes \|$", (ROOT / "SECURITY.md").read_text(), flags=re.MULTILINE)
    assert supported == [PROJECT["version"].rpartition(".")[0]]


def test_ci_tests_the_pythons_that_the_package_names() -> None:
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", text)]
    assert workflow("ci")["test"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_ci_runs_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    run = {step["run"] for job in workflow("ci").values() for step in job["steps"] if "run" in step}
    checks = workflow("ci")["check"]["strategy"]["matrix"]["target"]
    assert run == {"make test", 'make "$TARGET"'}
    assert {"lint", "types", "docs", "wheel", "lowest"} <= set(checks) <= targets


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_may_do_no_more_than_it_needs(path: Path) -> None:
    text = yaml.safe_load(path.read_text())
    assert text["permissions"] == {}
    assert "concurrency" in text
    for name, job in text["jobs"].items():
        assert job["permissions"] == ({"id-token": "write"} if name == "publish" else {"contents": "read"})


def test_what_is_published_is_what_was_tried_under_the_tag_s_version() -> None:
    build, publish = workflow("publish")["build"], workflow("publish")["publish"]
    runs = [step["run"] for step in build["steps"] if "run" in step]
    assert runs[-1] == "make wheel"
    assert 'test "$GITHUB_REF_NAME" = "v$(python -c' in runs[0]
    assert (publish["needs"], publish["environment"]) == ("build", "pypi")
    assert not any("run" in step or "checkout" in step["uses"] for step in publish["steps"])
    handed = [step["with"]["name"] for step in (build["steps"][-1], publish["steps"][0])]
    assert handed == ["dist", "dist"]


def test_every_check_of_make_lint_is_one_of_a_commit_s() -> None:
    makefile = (ROOT / "Makefile").read_text()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in re.findall(r"\$\(BIN\)/(ruff check|ruff format|zizmor|check-jsonschema|mypy)", makefile):
        assert f".venv/bin/{tool}" in hooks, tool
