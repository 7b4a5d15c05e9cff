"""How do the weights move? Recording, analysis, words and picture."""
