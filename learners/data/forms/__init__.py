"""Rows in the forms of published data sets, by name: `convert: hh` and the others of `registry.FORMS`."""
