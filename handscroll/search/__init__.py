"""Passages of documents that belong to a question: found by words and vectors, joined by rank. Imports no torch."""
