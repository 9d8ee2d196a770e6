"""What needs tensors: inspection of a study's bases and data, cohort sizing, probes, similarity of learned updates."""
