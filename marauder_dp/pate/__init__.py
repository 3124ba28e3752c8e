"""PATE: teachers on disjoint data vote on public queries, and a student learns from what is released."""
