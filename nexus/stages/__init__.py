"""The stages of a run, one module each: scope, registry, profile, architect, distill, gate, package, refine."""
