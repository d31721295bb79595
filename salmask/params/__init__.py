"""params.yaml: its sections, how values are validated, and what a run is. Nothing imports torch."""
