"""How do the weights move? Recording, analysis, report and picture of a run's orbit."""
