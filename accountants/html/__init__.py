"""`report.html`: one self-contained page from any ledger. Needs jinja2 and matplotlib, imported when a page is made.

`curves` computes what the charts show, `charts`, `query_charts` and `diagnostics` draw them, `svg` makes them part of a page,
`page` puts it together.
"""
