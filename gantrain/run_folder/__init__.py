"""What a run leaves on disk: the writer and the reader of each file, side by side."""
