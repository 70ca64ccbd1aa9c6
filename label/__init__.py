"""People who label: the statistics of what they say, and the formats that carry it.

Imports `common` and nothing else of this project, so it runs where neither Ray nor torch is installed."""
