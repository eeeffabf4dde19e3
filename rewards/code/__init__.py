"""Answers that are code: where they run, and how they are judged."""
