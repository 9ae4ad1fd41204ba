"""What the demo says, and whether what it checked held."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console

from bursar.cli.output import write_table


@dataclass
class Report:
    """What was checked, as a table at the end."""

    console: Console
    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    _scene: str = ""

    def scene(self, title: str) -> None:
        """Begin a scene."""
        self._scene = title
        self.console.print(f"\n[bold]{len({row[0] for row in self.rows}) + 1}. {title}[/bold]")

    def note(self, text: str) -> None:
        """Say what is seen."""
        self.console.print(f"   {text}", highlight=False)

    def check(self, what: str, holds: bool) -> None:
        """Remember whether something held."""
        self.rows.append((self._scene, what, holds))
        mark = "[green]ok[/green]" if holds else "[red]FAILED[/red]"
        self.console.print(f"   {mark} {what}", highlight=False)

    @property
    def all_held(self) -> bool:
        """Whether everything did."""
        return bool(self.rows) and all(held for _, _, held in self.rows)

    def write_summary(self) -> None:
        """The table at the end."""
        scenes = ["" if i and self.rows[i - 1][0] == row[0] else row[0] for i, row in enumerate(self.rows)]
        rows = [
            (scene, what, "held" if held else "DID NOT HOLD")
            for scene, (_, what, held) in zip(scenes, self.rows, strict=True)
        ]
        write_table(("SCENE", "CHECKED", "RESULT"), rows)
