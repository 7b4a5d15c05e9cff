"""Scores of generators and images against references."""
