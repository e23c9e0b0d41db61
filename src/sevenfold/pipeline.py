"""The graph of stages, which is DVC's: what it holds, what of it is stale, and running one stage. The one home of DVC."""
