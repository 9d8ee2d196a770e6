"""Where the demo's study lies."""

from pathlib import Path

DEMO = Path(__file__).with_name("demo.yaml")
