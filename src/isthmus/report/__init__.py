"""Reports of a run, a branch, a profile or a study: a self-contained page, printed figures, terminal tables."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.report.branch.page import write_branch_page
    from isthmus.report.branch.terminal import plain_branch, render_branch
    from isthmus.report.claims.page import write_claims_page
    from isthmus.report.claims.terminal import plain_claims, render_claims
    from isthmus.report.compare.page import write_compare_page
    from isthmus.report.compare.terminal import compare_text, render_compare
    from isthmus.report.profile.data import ProfileData, null_controls
    from isthmus.report.profile.page import write_profile_page
    from isthmus.report.profile.terminal import render_profile
    from isthmus.report.run.page import write_report
    from isthmus.report.run.terminal import layer_table, plain_text, render, state_table, summary_table
    from isthmus.report.simplify.page import write_simplify_page
    from isthmus.runs.folder import RunFolderError
    from isthmus.runs.reader import RunData, load_run

_HOMES = {
    "ProfileData": "profile.data",
    "RunData": "isthmus.runs.reader",
    "RunFolderError": "isthmus.runs.folder",
    "load_run": "isthmus.runs.reader",
    "write_branch_page": "branch.page",
    "write_claims_page": "claims.page",
    "write_compare_page": "compare.page",
    "write_profile_page": "profile.page",
    "write_report": "run.page",
    "write_simplify_page": "simplify.page",
    "compare_text": "compare.terminal",
    "layer_table": "run.terminal",
    "null_controls": "profile.data",
    "plain_branch": "branch.terminal",
    "plain_claims": "claims.terminal",
    "plain_text": "run.terminal",
    "render": "run.terminal",
    "render_branch": "branch.terminal",
    "render_claims": "claims.terminal",
    "render_compare": "compare.terminal",
    "render_profile": "profile.terminal",
    "state_table": "run.terminal",
    "summary_table": "run.terminal",
}

__all__ = [
    "ProfileData",
    "RunData",
    "RunFolderError",
    "compare_text",
    "layer_table",
    "load_run",
    "null_controls",
    "plain_branch",
    "plain_claims",
    "plain_text",
    "render",
    "render_branch",
    "render_claims",
    "render_compare",
    "render_profile",
    "state_table",
    "summary_table",
    "write_branch_page",
    "write_claims_page",
    "write_compare_page",
    "write_profile_page",
    "write_report",
    "write_simplify_page",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562), so that this package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(import_module(home if home.startswith("isthmus") else f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """Public names, whether imported yet or not."""
    return sorted(set(globals()) | set(__all__))
