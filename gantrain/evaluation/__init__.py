"""How good is it? Scores of generators and images against references."""
