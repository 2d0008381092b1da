"""Where a data set's images and masks lie: one module per kind of data set.

Each has two functions, see :class:`stages.layouts.row.Layout`. They open no image, so that the plan
can ask them, too.
"""
