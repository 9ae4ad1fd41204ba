"""The shell that every program shares: driver, outboxes, codec, settings, telemetry, networking."""
