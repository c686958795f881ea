"""Losses: functions of embeddings and a similarity, aware of all processes."""
