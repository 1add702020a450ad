"""Recordings: a session in one SQLite file, written as it goes, read anywhere."""
