"""What `gantrain VERB` does: a file a verb."""
