"""What agents do together: share data, compute, and pass on knowledge."""
