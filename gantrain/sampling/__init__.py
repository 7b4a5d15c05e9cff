"""How do I get images out of a run? Generators, latents, grids and outputs."""
