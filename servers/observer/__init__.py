"""The Observer: reads traces and probe maps, turns them into policies, scores snapshots on held-out data."""
