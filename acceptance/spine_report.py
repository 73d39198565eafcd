"""The page of the natural table, from its stored rows."""

from __future__ import annotations

import re
from collections.abc import Iterator

from acceptance.claims import CannotRunError, Claim, Context, Figure, exactly, item
from acceptance.spine_natural import ORIGINAL, table
from acceptance.spine_training import KEPT, METHODS
from acceptance.store import key_of, stored_path
from ironclip.report.page import build_report


def _rows() -> str:
    """Return the key of the rows that the page is made of."""
    return key_of(table)


@item(
    "natural_report",
    claims=(Claim("report", "the report is one page that loads nothing from outside (references)", exactly(0)),),
    modules=("ironclip.report.page",),
    state=_rows,
)
def report(context: Context) -> Iterator[Figure]:
    """Build the page of the four models."""
    runs = stored_path(KEPT, table, key_of(table)).with_suffix("")
    if context.short or not (runs / METHODS[-1] / "run.json").is_file():
        raise CannotRunError("natural_table has not left its runs")
    paths = [runs / name for name in (ORIGINAL, *METHODS)]
    page = build_report(paths, context.work / "report", title="Natural images under PGD-20")
    loads = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|\#)|url\(\s*["']?(?!data:|\#)|@import""", page.read_text())
    yield Figure("report", len(loads), f"{page.stat().st_size / 2**20:.1f} MiB, {len(loads)} references to outside")
