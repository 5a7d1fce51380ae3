"""The site for data consumers: its files in the lake, its data for one release, and its pages."""
