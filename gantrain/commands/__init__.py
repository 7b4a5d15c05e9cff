"""What `gantrain VERB` does: one module per command, with helpers that commands share in `arguments` and `sample_sheets`."""
