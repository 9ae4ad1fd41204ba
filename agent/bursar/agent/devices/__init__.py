"""Which devices a machine has, and how a container gets them: one small interface, several drivers (FLIP-108)."""
