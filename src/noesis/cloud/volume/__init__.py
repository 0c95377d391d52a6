"""The Modal volume: names on it, the lease, copies to and from it."""
