"""Statistics of a teacher's activations: recording, storing, spectra, and the memory that they take."""
