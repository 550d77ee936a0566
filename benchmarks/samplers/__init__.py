"""Error against network evaluations on exact mixtures: sciflows beside its peers, in one run."""
