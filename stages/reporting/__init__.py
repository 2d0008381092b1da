"""Parts of the report: what its pages say, and how they are written."""
