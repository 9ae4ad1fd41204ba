"""Dialogues with the master's machine, as its tests write them: a `Playbook` and the peers that it makes."""

from dialogue.playbook import Playbook

__all__ = ["Playbook"]
