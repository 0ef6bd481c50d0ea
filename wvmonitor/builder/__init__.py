"""From a behaviour's name to a reference anyone can trust: the bundled builder."""
