"""The fault matrix of docs/reliability.md: what is done to runs, and that nothing is lost by it."""
