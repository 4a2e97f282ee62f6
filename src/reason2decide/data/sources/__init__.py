"""One module per origin of records.

To add a source, write `sources/NAME.py`, whose function hands its records to `writing.write_import`, and give it a
command in `cli/data.py`. `writing` spools, splits, sorts and writes; a source only says what a record is.
"""
