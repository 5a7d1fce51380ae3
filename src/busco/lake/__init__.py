"""The lake's protocol: deliveries, versions, runs and releases.

Only `versions`, `scrub` and `iceberg_io` need pyiceberg.
"""
