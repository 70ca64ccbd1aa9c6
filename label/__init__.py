"""People who label: the workplace where they rate, rank and write responses, the statistics of what they say,
and the rows that a run trains on.

Imports `common` and nothing else of this project, so it runs where neither Ray nor torch is installed."""
