"""The workplace over HTTP."""
