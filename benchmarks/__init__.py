"""Ratios and claims: every module here but `ratio` defines `run(full: bool) -> None`; `make bench ONLY=name` runs one."""
