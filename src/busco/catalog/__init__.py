"""The live release, shown: Glue tables, the docs page, and queries over both engines."""
