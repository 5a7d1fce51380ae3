"""Source files → bronze: each file becomes one immutable delivery, or is refused whole (rules D1 to D4)."""
