"""What does a run leave on disk? Writer and reader of each file side by side."""
