"""Statistics of a teacher's activations: recording, storing, spectra, and memory estimates."""
