"""Engines: each computes a canonical `Problem`. They trust their caller and know nothing of names such as "cosine"."""
