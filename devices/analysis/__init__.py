"""What the devices compute: no I/O but reading their own data files, no MQTT."""
