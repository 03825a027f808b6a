"""What a teacher's capability is made of: probes on its hooks, spectra, and causal tests. Raw activations stay in memory."""
