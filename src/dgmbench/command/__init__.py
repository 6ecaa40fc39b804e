"""What people type: one file a verb, completion, listing and sweeps."""
