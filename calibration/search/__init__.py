"""Searches that trade agreement against time: resumable, seeded, every evaluation kept."""
