"""How do I get images out of a run? Generators, latents, sheets, outputs."""
