"""Knows from examples and from answers: what a question is about, whether anybody covers it, whom to trust."""
