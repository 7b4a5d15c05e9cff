"""Drawing images from a run: generators, latents, grids and outputs."""
