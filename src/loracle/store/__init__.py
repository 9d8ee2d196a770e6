"""The study folder: names, atomic writes, claims, records, identity, provenance. Never loads torch."""
