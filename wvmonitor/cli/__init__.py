"""The command line: one file a command, and none of them with logic of its own."""

__all__: list[str] = []
