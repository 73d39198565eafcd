"""The bundled model as it is shipped: what the items of `tiny` measure."""

from __future__ import annotations

from acceptance.claims import ROOT, SHARED, Bound

MODEL = "tiny"
FOLDER = ROOT / "src" / "ironclip" / "models" / "tiny"
SHIPPED = ("src/ironclip/models/tiny/*",)
DATA = str(SHARED / "data")

REPORTED = Bound(unit="%")
"""No threshold: the plan asks for the figure beside chance."""
