"""The report of a run: one self-contained HTML page that works offline."""

from farm.quality.report.page import render, write_report
from farm.quality.report.view import LaneSpan, RunView, SubjectView

__all__ = ["LaneSpan", "RunView", "SubjectView", "render", "write_report"]
