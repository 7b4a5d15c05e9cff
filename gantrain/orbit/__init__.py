"""Motion of the weights: recording, analysis, report and picture of a run's orbit."""
