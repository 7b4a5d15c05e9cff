"""How does it train? The loop and its parts."""
