"""One page of HTML about a run, from the files in its folder.

Read in this order: contents, series, plots, tables, page.
"""
