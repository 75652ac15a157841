"""Precision in the graph: which nodes compute in half precision, and the casts between."""
