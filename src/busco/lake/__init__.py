"""The lake's protocol: deliveries, versions, runs and releases.

Only `versions`, `scrub`, `iceberg_io` and the modules that import them need pyiceberg.
"""
