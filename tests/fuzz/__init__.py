"""Small targets for fuzzers: each takes bytes, and raises for a fault alone."""
