"""A report as one HTML file: self-contained, inert against whatever the target's names hold, readable on paper."""

from tracer.report.html.page import write_html

__all__ = ["write_html"]
