"""The lake's protocol: deliveries, versions, runs, releases; of it only `versions` needs pyiceberg."""
