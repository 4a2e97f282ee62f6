"""One module for each source of records.

To add a source, write `sources/NAME.py`, whose function passes its records to `writing.write_import`, and add a
command in `cli/data.py`. `writing` spools, splits, sorts and writes; a source only defines what a record is.
"""
