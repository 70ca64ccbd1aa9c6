"""The stages of a run, one module each: `run(context) -> results`."""
