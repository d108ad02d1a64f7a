"""How fast and how small mqttcollab is, each figure beside a peer that was measured in the same run."""
