"""What changes a task's coordinates before merging; a class listed here is found by its name."""

__all__: list[str] = []
