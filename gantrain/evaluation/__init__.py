"""How good is it? Scores of weights, folders and files against references."""
