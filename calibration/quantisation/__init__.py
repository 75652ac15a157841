"""Fewer bits by explicit Q/DQ: INT8, FP8 and INT4 weights, ranges from data, RSQ."""
