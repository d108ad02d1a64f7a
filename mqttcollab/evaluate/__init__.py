"""The decisions of the orchestrator against data sets: the very same code, beside baselines and the limit."""
