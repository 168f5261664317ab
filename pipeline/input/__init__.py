"""What to read: listings, buckets, containers, manifests, and the fetching of bytes."""
