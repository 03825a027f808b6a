"""Native helpers that probe programs may call: `inline` inside the step, the others outside it. Imports nothing."""
