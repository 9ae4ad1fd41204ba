"""How tasks run: one interface, several runtimes."""
