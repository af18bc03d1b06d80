"""m27: one decoder whose vocabulary also spells pictures and sounds."""

__version__ = "0.1.0"
