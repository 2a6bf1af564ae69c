"""Turn a run folder into one self-contained `report.html`; needs no model code."""

from expunge.report.render import write_report

__all__ = ["write_report"]
