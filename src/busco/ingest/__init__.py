"""Loads source files into bronze: each file becomes one immutable delivery or is refused as a whole (D1 to D4)."""
