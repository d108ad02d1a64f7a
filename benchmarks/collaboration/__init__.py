"""Does working together help? Checkable questions for a phone alone, an orchestrator, and its ablations."""
