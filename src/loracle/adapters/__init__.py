"""Cohort LoRA: many adapters over one frozen base; targets; PEFT files in and out."""
